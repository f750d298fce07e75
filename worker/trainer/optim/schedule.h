// Learning rates by step, as transformers' get_scheduler defines them. Pure.
#pragma once

#include <cstdint>

#include "common/spec/job_spec.h"

namespace qlora::trainer {

struct Schedule {
  LrScheduler kind = LrScheduler::kLinear;
  double learning_rate = 0;
  // Linear from 0; also with kConstant.
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;
};

// warmup_steps, or warmup_ratio of the total, rounded up.
Schedule MakeSchedule(const JobSpec::Train& train, int64_t total_steps);

// The rate used in a step, counted from 1.
double LearningRateAt(const Schedule& schedule, int64_t step);

}  // namespace qlora::trainer
