// One thread that waits on descriptors, timers and posted work. What runs on
// it needs no lock among itself.
//
// Post and Stop may be called from any thread, everything else only on the
// loop's thread or before Run.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/base/mutex.h"

namespace qlora::agent {

class EventLoop {
 public:
  using Work = std::function<void()>;

  EventLoop();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Returns after Stop.
  void Run();
  void Stop();
  // Runs work on the loop's thread, in the order of the calls. What is posted
  // after Stop may never run.
  void Post(Work work);

  // Calls `ready` with poll(2)'s revents while fd has one of `events`. A second
  // Watch of the same fd replaces the first.
  void Watch(int fd, short events, std::function<void(short)> ready);
  void Unwatch(int fd);

  // A timer's id is never 0.
  uint64_t RunAfter(absl::Duration delay, Work work);
  // A timer that ran or was cancelled is fine.
  void CancelTimer(uint64_t id);

 private:
  struct Watched {
    short events = 0;
    std::shared_ptr<std::function<void(short)>> ready;
  };

  int PollTimeoutMs() const;
  void RunTimers();
  void RunPosted();
  void DispatchDescriptors();

  int wake_fd_ = -1;
  std::map<int, Watched> watched_;
  // Keyed by deadline (monotonic nanoseconds) and id.
  std::map<std::pair<int64_t, uint64_t>, Work> timers_;
  uint64_t next_timer_ = 1;

  Mutex mu_;
  std::vector<Work> posted_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace qlora::agent
