// The machine's own rate of matrix products, by the library that the trainer
// uses.
#pragma once

#include "common/spec/job_spec.h"

namespace qlora::bench {

// The best of several products of 2048 x 2048 matrices, FLOP/s.
double MeasureGemmRate(ComputeDtype dtype, int threads);

}  // namespace qlora::bench
