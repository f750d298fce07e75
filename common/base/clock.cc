#include "common/base/clock.h"

#include <chrono>

namespace qlora {
namespace {

class RealClock : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
  absl::Time Steady() const override { return SteadyNow(); }
};

}  // namespace

absl::Time SteadyNow() {
  return absl::UnixEpoch() +
         absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

Clock* Clock::Real() {
  static RealClock clock;
  return &clock;
}

}  // namespace qlora
