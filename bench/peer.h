// Runs a peer's program, with the Python that has the peers.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "bench/options.h"
#include "nlohmann/json.hpp"

namespace qlora::bench {

// The JSON object that `program` (of options.peers) prints last; `arguments`
// are for the shell. Internal if it fails.
absl::StatusOr<nlohmann::json> RunPeer(const Options& options,
                                       const std::string& program,
                                       const std::string& arguments);

// A peer's program that works when it is told to: it reads the names of works
// line by line and answers each with the seconds that the work has taken, or
// with why it cannot do it here. Ends with its owner.
class Peer {
 public:
  // Internal without a process.
  static absl::StatusOr<std::unique_ptr<Peer>> Start(
      const Options& options, const std::string& program,
      const std::string& arguments);
  ~Peer();

  // Unavailable with the program's reason. Internal if the program fails; it
  // says why on standard error.
  absl::StatusOr<double> Seconds(const std::string& work);

 private:
  Peer(pid_t pid, FILE* stream) : pid_(pid), stream_(stream) {}

  const pid_t pid_;
  // Both ways.
  FILE* const stream_;
};

}  // namespace qlora::bench
