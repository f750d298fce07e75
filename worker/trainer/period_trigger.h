// When something periodic is due: every so many steps, epochs or minutes.
#pragma once

#include <cmath>
#include <cstdint>

#include "absl/time/time.h"
#include "common/spec/job_spec.h"

namespace qlora::trainer {

class PeriodTrigger {
 public:
  PeriodTrigger(const Period& period, absl::Time now)
      : period_(period), last_(now) {}

  // After a step that moved the epoch (a fraction) from `before` to `after`.
  // The same on every rank; false for periods of time.
  bool DueAfter(int64_t step, double before, double after) const {
    if (period_.steps > 0) return step % period_.steps == 0;
    if (period_.epochs > 0) return Count(after) > Count(before);
    return false;
  }

  // For periods of time; true starts the next one.
  bool DueAt(absl::Time now) {
    if (period_.time <= absl::ZeroDuration() || now - last_ < period_.time) {
      return false;
    }
    last_ = now;
    return true;
  }

 private:
  // Whole periods in so many epochs; forgives rounding.
  double Count(double epochs) const {
    return std::floor(epochs / period_.epochs + 1e-9);
  }

  const Period period_;
  absl::Time last_;
};

}  // namespace qlora::trainer
