// The time as a dependency: production code takes a Clock*, tests pass a
// FakeClock. All methods may be called from any thread.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"

namespace qlora {

class Clock {
 public:
  virtual ~Clock() = default;
  // Wall-clock time: for people. It jumps when the clock is set.
  virtual absl::Time Now() const = 0;
  // A time that never jumps and stands still while the machine sleeps: for
  // leases and timeouts. Means nothing beside another process's or Now().
  virtual absl::Time Steady() const = 0;

  // The machine's clock; lives forever.
  static Clock* Real();
};

class FakeClock : public Clock {
 public:
  explicit FakeClock(absl::Time now) : now_(now) {}
  absl::Time Now() const override {
    MutexLock lock(&mu_);
    return now_;
  }
  absl::Time Steady() const override {
    MutexLock lock(&mu_);
    return steady_;
  }
  void Advance(absl::Duration d) {
    MutexLock lock(&mu_);
    now_ += d;
    steady_ += d;
  }
  // The clock is set, or the machine slept.
  void Jump(absl::Duration d) {
    MutexLock lock(&mu_);
    now_ += d;
  }

 private:
  mutable Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_);
  absl::Time steady_ ABSL_GUARDED_BY(mu_) = absl::UnixEpoch();
};

// Clock::Steady of the machine's clock.
absl::Time SteadyNow();

}  // namespace qlora
