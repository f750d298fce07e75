// A thread that does blocking work for one attempt or task, one piece after
// the other, so that the event loop never waits.
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <utility>

#include "common/base/mutex.h"
#include "worker/agent/cancellation.h"

namespace qlora::agent {

class TransferQueue {
 public:
  // on_stopped: the last thing that the thread calls; stopped() is true then.
  explicit TransferQueue(std::function<void()> on_stopped)
      : on_stopped_(std::move(on_stopped)), thread_([this] { Run(); }) {}
  // Cancels, drops what has not begun, waits for the rest.
  ~TransferQueue() {
    Cancel();
    thread_.join();
  }
  TransferQueue(const TransferQueue&) = delete;
  TransferQueue& operator=(const TransferQueue&) = delete;

  // Work gets the cancellation it must heed.
  void Add(std::function<void(Cancellation&)> work) {
    MutexLock lock(&mu_);
    work_.push_back(std::move(work));
    changed_.Signal();
  }
  // Ends the thread as soon as its work heeds that.
  void Cancel() {
    cancellation_.Cancel();
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.Signal();
  }

  // Destruction no longer waits for work.
  bool stopped() const {
    MutexLock lock(&mu_);
    return stopped_;
  }

 private:
  void Run() {
    RunWork();
    {
      MutexLock lock(&mu_);
      stopped_ = true;
    }
    on_stopped_();
  }

  void RunWork() {
    while (true) {
      std::function<void(Cancellation&)> next;
      {
        MutexLock lock(&mu_);
        while (!stopping_ && work_.empty()) changed_.Wait(&mu_);
        if (stopping_) return;
        next = std::move(work_.front());
        work_.pop_front();
      }
      next(cancellation_);
    }
  }

  const std::function<void()> on_stopped_;
  Cancellation cancellation_;
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void(Cancellation&)>> work_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  // Last: uses what is above.
  std::thread thread_;
};

}  // namespace qlora::agent
