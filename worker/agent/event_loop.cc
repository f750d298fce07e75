#include "worker/agent/event_loop.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

namespace qlora::agent {
namespace {

int64_t MonotonicNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

EventLoop::EventLoop() : wake_fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

EventLoop::~EventLoop() { ::close(wake_fd_); }

void EventLoop::Run() {
  while (true) {
    {
      MutexLock lock(&mu_);
      if (stopping_) return;
    }
    DispatchDescriptors();
    RunTimers();
    RunPosted();
  }
}

void EventLoop::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  Post([] {});
}

void EventLoop::Post(Work work) {
  {
    MutexLock lock(&mu_);
    posted_.push_back(std::move(work));
  }
  const uint64_t one = 1;
  // A full counter wakes the loop as well.
  [[maybe_unused]] const ssize_t n = ::write(wake_fd_, &one, sizeof(one));
}

void EventLoop::Watch(int fd, short events, std::function<void(short)> ready) {
  watched_[fd] = {
      .events = events,
      .ready = std::make_shared<std::function<void(short)>>(std::move(ready))};
}

void EventLoop::Unwatch(int fd) { watched_.erase(fd); }

uint64_t EventLoop::RunAfter(absl::Duration delay, Work work) {
  const uint64_t id = next_timer_++;
  // Further than any process lives, and without an overflow.
  delay = std::min(delay, absl::Hours(24 * 365));
  timers_[{MonotonicNanos() + absl::ToInt64Nanoseconds(delay), id}] =
      std::move(work);
  return id;
}

void EventLoop::CancelTimer(uint64_t id) {
  const auto it = std::find_if(
      timers_.begin(), timers_.end(),
      [id](const auto& timer) { return timer.first.second == id; });
  if (it != timers_.end()) timers_.erase(it);
}

int EventLoop::PollTimeoutMs() const {
  if (timers_.empty()) return -1;
  const int64_t left = timers_.begin()->first.first - MonotonicNanos();
  return static_cast<int>(std::clamp<int64_t>(left / 1'000'000 + 1, 0, 60'000));
}

void EventLoop::DispatchDescriptors() {
  std::vector<pollfd> fds = {{.fd = wake_fd_, .events = POLLIN, .revents = 0}};
  for (const auto& [fd, watched] : watched_) {
    fds.push_back({.fd = fd, .events = watched.events, .revents = 0});
  }
  if (::poll(fds.data(), fds.size(), PollTimeoutMs()) <= 0) return;
  if (fds[0].revents != 0) {
    uint64_t count;
    [[maybe_unused]] const ssize_t n = ::read(wake_fd_, &count, sizeof(count));
  }
  for (size_t i = 1; i < fds.size(); ++i) {
    if (fds[i].revents == 0) continue;
    const auto it = watched_.find(fds[i].fd);
    if (it == watched_.end()) continue;
    // The callback may unwatch itself.
    const auto ready = it->second.ready;
    (*ready)(fds[i].revents);
  }
}

void EventLoop::RunTimers() {
  const int64_t now = MonotonicNanos();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    const Work work = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    work();
  }
}

void EventLoop::RunPosted() {
  std::vector<Work> posted;
  {
    MutexLock lock(&mu_);
    posted.swap(posted_);
  }
  for (const Work& work : posted) work();
}

}  // namespace qlora::agent
