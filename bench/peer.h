// Runs a peer's program, with the Python that has the peers.
#pragma once

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

}  // namespace qlora::bench
