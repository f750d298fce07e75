// Threads for work that blocks (commits, files), so that gRPC's own threads do
// not. Thread-safe.
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "common/base/mutex.h"

namespace qlora::server {

class ThreadPool {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this] { Work(); });
    }
  }
  // Runs what is queued, then ends.
  ~ThreadPool() {
    {
      MutexLock lock(&mu_);
      stopping_ = true;
    }
    wake_.SignalAll();
    for (std::thread& thread : threads_) thread.join();
  }

  void Run(std::function<void()> work) {
    {
      MutexLock lock(&mu_);
      queue_.push_back(std::move(work));
    }
    wake_.Signal();
  }

 private:
  void Work() {
    while (true) {
      std::function<void()> work;
      {
        MutexLock lock(&mu_);
        while (queue_.empty() && !stopping_) wake_.Wait(&mu_);
        if (queue_.empty()) return;
        work = std::move(queue_.front());
        queue_.pop_front();
      }
      work();
    }
  }

  Mutex mu_;
  CondVar wake_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  // Last: joined before what they use goes.
  std::vector<std::thread> threads_;
};

}  // namespace qlora::server
