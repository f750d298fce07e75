// Processes that outlive the command that started them, named so that a reused
// pid is never mistaken for one of them. Linux. All functions may be called
// from any thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace qlora::client {

// A pid together with the kernel's start time of the process, clock ticks since
// boot: two processes never share both.
struct ProcessId {
  pid_t pid = 0;
  uint64_t start_time = 0;
};

struct SpawnOptions {
  // Absolute path of the program, then its arguments.
  std::vector<std::string> argv;
  std::string working_directory;
  // Standard output and error are appended here; empty: inherited.
  std::string log_file;
  // SIGTERM when this process ends, however it ends.
  bool die_with_parent = false;
};

// Starts a program in a session of its own with standard input from /dev/null;
// it inherits no other descriptor than standard output and error. NotFound if
// it cannot be executed.
absl::StatusOr<ProcessId> Spawn(const SpawnOptions& options);

// Running, and the same process. One that only waits to be reaped is not.
bool IsAlive(const ProcessId& process);

// Reaps a child of this process that ended; true if it did.
bool ReapIfEnded(const ProcessId& child);

// SIGTERM, then SIGKILL after `grace`, to the process alone; returns when it is
// gone. True if it had not to be killed. One that was gone before is fine: what
// else may have its pid by now is left alone.
bool StopProcess(const ProcessId& process, absl::Duration grace);

}  // namespace qlora::client
