// Starts and ends processes on behalf of an agent that has threads.
//
// The launcher is a process forked from the agent before it has any thread, so
// that nothing in it can be locked half-way. It makes each child a session of
// its own, binds it to cores, kills it when the launcher dies (and itself dies,
// after killing all children, when the agent does), adopts and kills what
// children leave behind, and reports every exit.
//
//   agent --- Spawn, Kill ---> launcher --- fork, exec ---> rank
//         <-- Spawned, Failed, Exited --
//
// A child finds its frame socket on descriptor 3 and, if given, a listening
// socket on 4. Used by one thread.
#pragma once

#include <sys/types.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/agent/launcher_wire.h"

namespace qlora::agent {

// The child's ends. All are closed by Spawn.
struct SpawnFds {
  UniqueFd frames;
  UniqueFd stdout_pipe;
  UniqueFd stderr_pipe;
  // May be none.
  UniqueFd listener;
};

class Launcher {
 public:
  // Forks. Call while the process has a single thread, before it takes locks
  // or opens what a child must not hold. Unavailable if the system refuses.
  static absl::StatusOr<Launcher> Start();

  // The launcher's answer comes later through Read. Unavailable: it is gone.
  absl::Status Spawn(const SpawnRequest& request, SpawnFds fds);
  // Signals the process and its group. One that has ended is fine.
  absl::Status Kill(uint64_t id, int signal);

  // Readable when Read has something.
  int fd() const { return socket_.get(); }
  pid_t pid() const { return pid_; }
  // Blocks for the next reply. Unavailable: the launcher is gone, and with it
  // every child.
  absl::StatusOr<LauncherReply> Read();

 private:
  Launcher(UniqueFd socket, pid_t pid)
      : socket_(std::move(socket)), pid_(pid) {}

  UniqueFd socket_;
  pid_t pid_;
};

}  // namespace qlora::agent
