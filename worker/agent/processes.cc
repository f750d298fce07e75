#include "worker/agent/processes.h"

#include <poll.h>

#include <utility>

namespace qlora::agent {

Processes::Processes(EventLoop& loop, Launcher launcher,
                     std::function<void()> on_lost)
    : loop_(loop),
      launcher_(std::move(launcher)),
      on_lost_(std::move(on_lost)) {
  loop_.Watch(launcher_.fd(), POLLIN, [this](short) { ReadReply(); });
}

uint64_t Processes::Spawn(SpawnRequest request, SpawnFds fds,
                          OnReply on_reply) {
  request.id = next_id_++;
  running_[request.id] = std::move(on_reply);
  const absl::Status sent = launcher_.Spawn(request, std::move(fds));
  if (!sent.ok()) {
    loop_.Post([this, id = request.id, error = std::string(sent.message())] {
      const auto it = running_.find(id);
      if (it == running_.end()) return;
      const OnReply callback = std::move(it->second);
      running_.erase(it);
      callback(
          {.type = LauncherReply::Type::kFailed, .id = id, .error = error});
    });
  }
  return request.id;
}

void Processes::Kill(uint64_t id, int signal) {
  // A launcher that is gone took the process along.
  launcher_.Kill(id, signal).IgnoreError();
}

void Processes::ReadReply() {
  const auto reply = launcher_.Read();
  if (!reply.ok()) return Lost();
  const auto it = running_.find(reply->id);
  if (it == running_.end()) return;
  const OnReply callback = it->second;
  if (reply->type != LauncherReply::Type::kSpawned) running_.erase(it);
  callback(*reply);
}

void Processes::Lost() {
  loop_.Unwatch(launcher_.fd());
  on_lost_();
}

}  // namespace qlora::agent
