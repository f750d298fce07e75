// The worker as a whole: makes its parts, wires them, runs until it is told to
// leave.
#pragma once

#include "absl/status/status.h"
#include "worker/agent/launcher.h"
#include "worker/agent/options.h"

namespace qlora::agent {

// Runs until SIGTERM or SIGINT; on the first, ranks save and leave (30 s at
// most), a second one ends them at once. SIGTERM and SIGINT must be blocked in
// the calling thread. FailedPrecondition: the data directory is in use;
// Unavailable: a port is taken, the launcher died or events cannot be stored;
// else as common/base/files.h.
absl::Status RunWorker(const WorkerOptions& options, Launcher launcher);

}  // namespace qlora::agent
