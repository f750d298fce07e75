// Ends blocking work from another thread. Thread-safe.
#pragma once

#include <functional>
#include <utility>

#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"

namespace qlora::agent {

class Cancellation {
 public:
  void Cancel() {
    MutexLock lock(&mu_);
    cancelled_ = true;
    if (on_cancel_) on_cancel_();
    changed_.SignalAll();
  }
  bool cancelled() const {
    MutexLock lock(&mu_);
    return cancelled_;
  }
  // Waits that long; false if cancelled before or meanwhile.
  bool Sleep(absl::Duration duration) {
    const absl::Time end = SteadyNow() + duration;
    MutexLock lock(&mu_);
    while (!cancelled_ && SteadyNow() < end) {
      changed_.WaitWithTimeout(&mu_, end - SteadyNow());
    }
    return !cancelled_;
  }
  // Called by Cancel (at once if that has happened) until replaced; null: none.
  void OnCancel(std::function<void()> callback) {
    MutexLock lock(&mu_);
    on_cancel_ = std::move(callback);
    if (cancelled_ && on_cancel_) on_cancel_();
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  std::function<void()> on_cancel_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::agent
