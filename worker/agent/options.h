// The command line of qlora-worker: flags over QLORA_WORKER_* variables over
// the file of --config.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/log.h"

namespace qlora::agent {

struct WorkerOptions {
  std::string data_dir;
  // "127.0.0.1:7070".
  std::string coordinator = "127.0.0.1:7070";
  // Default: the host's name.
  std::string node_name;
  // "auto" or "cpu=N".
  std::string devices = "auto";
  // Absolute.
  std::vector<std::string> model_roots;
  std::string data_plane_interface = "lo";
  std::string metrics_listen = "127.0.0.1:9465";
  // Path of qlora-trainer. Default: beside this program.
  std::string trainer;
  // See RankTimeouts in environment.h.
  absl::Duration step_timeout = absl::Minutes(1);
  absl::Duration first_step_timeout = absl::Minutes(30);
  // What only saves downloads goes beyond so many bytes.
  int64_t cache_bytes = int64_t{64} << 30;
  std::string log_format = "text";
};

// Returns the exit code for --help, --version and --check-config, and for what
// is wrong (which it has printed); else fills `options`. Checks everything that
// can be checked without acting.
std::optional<int> ParseCommandLine(int argc, char** argv,
                                    WorkerOptions& options);

}  // namespace qlora::agent
