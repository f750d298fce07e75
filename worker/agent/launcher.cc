#include "worker/agent/launcher.h"

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "worker/agent/launcher_process.h"

namespace qlora::agent {

absl::StatusOr<Launcher> Launcher::Start() {
  int sockets[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) {
    return ErrnoToStatus(errno, "launcher socket");
  }
  UniqueFd ours(sockets[0]);
  UniqueFd theirs(sockets[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoToStatus(errno, "fork of the launcher");
  if (pid == 0) {
    ours.Reset();
    RunLauncherProcess(theirs.Release());
  }
  return Launcher(std::move(ours), pid);
}

absl::Status Launcher::Spawn(const SpawnRequest& request, SpawnFds fds) {
  std::vector<int> numbers = {fds.frames.get(), fds.stdout_pipe.get(),
                              fds.stderr_pipe.get()};
  if (fds.listener.valid()) numbers.push_back(fds.listener.get());
  LauncherRequest message;
  message.spawn = request;
  return SendPacket(socket_.get(), EncodeRequest(message), numbers);
}

absl::Status Launcher::Kill(uint64_t id, int signal) {
  LauncherRequest message;
  message.type = LauncherRequest::Type::kKill;
  message.kill = {.id = id, .signal = signal};
  return SendPacket(socket_.get(), EncodeRequest(message), {});
}

absl::StatusOr<LauncherReply> Launcher::Read() {
  ASSIGN_OR_RETURN(const Packet packet, ReceivePacket(socket_.get()));
  if (packet.bytes.empty()) {
    return absl::UnavailableError("the launcher process is gone");
  }
  return DecodeReply(packet.bytes);
}

}  // namespace qlora::agent
