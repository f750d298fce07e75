#include "worker/trainer/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace qlora::trainer {

Schedule MakeSchedule(const JobSpec::Train& train, int64_t total_steps) {
  Schedule schedule{.kind = train.lr_scheduler,
                    .learning_rate = train.learning_rate,
                    .warmup_steps = train.warmup_steps,
                    .total_steps = total_steps};
  if (schedule.warmup_steps == 0) {
    schedule.warmup_steps = static_cast<int64_t>(
        std::ceil(train.warmup_ratio * static_cast<double>(total_steps)));
  }
  return schedule;
}

double LearningRateAt(const Schedule& schedule, int64_t step) {
  // transformers counts the steps that are done.
  const auto done = static_cast<double>(step - 1);
  const auto warmup = static_cast<double>(schedule.warmup_steps);
  const auto total = static_cast<double>(schedule.total_steps);
  if (done < warmup) {
    return schedule.learning_rate * done / std::max(1.0, warmup);
  }
  const double length = std::max(1.0, total - warmup);
  switch (schedule.kind) {
    case LrScheduler::kConstant:
      break;
    case LrScheduler::kLinear:
      return schedule.learning_rate * std::max(0.0, total - done) / length;
    case LrScheduler::kCosine:
      return schedule.learning_rate *
             std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi *
                                                 (done - warmup) / length)));
  }
  return schedule.learning_rate;
}

}  // namespace qlora::trainer
