// The launcher on an event loop: starts processes and says when they end. Used
// on the loop's thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "worker/agent/event_loop.h"
#include "worker/agent/launcher.h"

namespace qlora::agent {

class Processes {
 public:
  // kSpawned, then kExited; or kFailed.
  using OnReply = std::function<void(const LauncherReply&)>;

  // `on_lost` is called once if the launcher dies; every process is dead then
  // and none can be started. loop must outlive this.
  Processes(EventLoop& loop, Launcher launcher, std::function<void()> on_lost);

  // Returns the process's id. request.id is ignored.
  uint64_t Spawn(SpawnRequest request, SpawnFds fds, OnReply on_reply);
  // One that has ended is fine.
  void Kill(uint64_t id, int signal);
  // No more calls of its OnReply.
  void Forget(uint64_t id) { running_.erase(id); }

 private:
  void ReadReply();
  void Lost();

  EventLoop& loop_;
  Launcher launcher_;
  const std::function<void()> on_lost_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, OnReply> running_;
};

}  // namespace qlora::agent
