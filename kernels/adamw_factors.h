// What is the same for all elements of an optimizer's step, rounded as torch
// rounds it.
#pragma once

#include "kernels/optimizer.h"

namespace qlora::kernels {

struct AdamWFactors {
  float clip;
  float keep;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float minus_step_size;
  float sqrt_correction2;
  float epsilon;
};

// Reads *op.clip_sum_of_squares.
AdamWFactors FactorsOf(const AdamW& op);

}  // namespace qlora::kernels
