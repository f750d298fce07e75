// How many lines of log the ranks of an attempt may have, so that one that
// prints without end does not fill disks and keep everybody busy. Pure: time
// comes in. Used by one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/time/time.h"

namespace qlora::agent {

class LogBudget {
 public:
  static constexpr double kBurst = 2000;
  static constexpr double kPerSecond = 100;

  // Whether another line may pass. now: SteadyNow(), which must not go back.
  bool Take(absl::Time now) {
    tokens_ = std::min(
        kBurst, tokens_ + kPerSecond * absl::ToDoubleSeconds(now - last_));
    last_ = now;
    const bool passes = tokens_ >= 1;
    if (passes) {
      tokens_ -= 1;
    } else {
      ++left_out_;
    }
    return passes;
  }

  // Lines that did not pass since the last call.
  int64_t TakeLeftOut() { return std::exchange(left_out_, 0); }

 private:
  double tokens_ = kBurst;
  absl::Time last_ = absl::InfinitePast();
  int64_t left_out_ = 0;
};

}  // namespace qlora::agent
