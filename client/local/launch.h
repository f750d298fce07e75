// Starting a coordinator and a worker on this machine and waiting until both
// can take a job.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/local/instance.h"

namespace qlora::client {

// Where the daemons listen if nobody else does.
inline constexpr int kUsualPort = 7070;
inline constexpr int kUsualMetricsPort = 9464;
inline constexpr int kUsualWorkerMetricsPort = 9465;

struct LaunchOptions {
  // Absolute, exists.
  std::string data_dir;
  int cpu_ranks = 0;
  // Absolute.
  std::vector<std::string> model_roots;
  // Logs go to standard error and the daemons end with this process.
  bool foreground = false;
  // An instance that lost a daemon: the other goes on, and so does what it
  // trains; the lost one comes back at its addresses.
  std::optional<LocalInstance> remains = std::nullopt;
  // host:port where a new coordinator is not to listen.
  std::vector<std::string> reserved = {};
};

// Starts what does not run yet; on an error nothing that it started is left
// running. Unavailable with the last lines of a daemon's log if it ends or is
// not ready within a minute.
absl::StatusOr<LocalInstance> LaunchLocal(const LaunchOptions& options);

// The directory of the running program, where the daemons lie too.
absl::StatusOr<std::string> ProgramDirectory();

}  // namespace qlora::client
