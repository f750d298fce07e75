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
// Does not, where only a device can: clip is 1.
AdamWFactors UnclippedFactorsOf(const AdamW& op);

// Of a gradient with this norm. A norm that is NaN stays one.
constexpr float ClipFactor(double max_grad_norm, double norm) {
  const double wanted = max_grad_norm / (norm + 1e-6);
  return static_cast<float>(wanted > 1 ? 1 : wanted);
}

}  // namespace qlora::kernels
