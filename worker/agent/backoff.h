// Full-jitter exponential backoff: waits are uniform in [0, limit), and the
// limit doubles. Used by one thread.
#pragma once

#include <algorithm>
#include <random>

#include "absl/time/time.h"

namespace qlora::agent {

class Backoff {
 public:
  Backoff(absl::Duration first, absl::Duration max)
      : first_(first), max_(max), limit_(first) {}

  absl::Duration Next() {
    const absl::Duration wait =
        limit_ * std::uniform_real_distribution<double>(0, 1)(random_);
    limit_ = std::min(2 * limit_, max_);
    return wait;
  }
  void Reset() { limit_ = first_; }

 private:
  const absl::Duration first_;
  const absl::Duration max_;
  absl::Duration limit_;
  std::mt19937_64 random_{std::random_device()()};
};

}  // namespace qlora::agent
