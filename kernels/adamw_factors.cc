#include "kernels/adamw_factors.h"

#include <cmath>

namespace qlora::kernels {

AdamWFactors UnclippedFactorsOf(const AdamW& op) {
  const auto t = static_cast<double>(op.step);
  const double correction1 = 1 - std::pow(op.beta1, t);
  const double correction2 = 1 - std::pow(op.beta2, t);
  return {
      .clip = 1,
      .keep = static_cast<float>(1 - op.learning_rate * op.weight_decay),
      .one_minus_beta1 = static_cast<float>(1 - op.beta1),
      .beta2 = static_cast<float>(op.beta2),
      .one_minus_beta2 = static_cast<float>(1 - op.beta2),
      .minus_step_size = static_cast<float>(-op.learning_rate / correction1),
      .sqrt_correction2 = static_cast<float>(std::sqrt(correction2)),
      .epsilon = static_cast<float>(op.epsilon)};
}

AdamWFactors FactorsOf(const AdamW& op) {
  AdamWFactors factors = UnclippedFactorsOf(op);
  if (op.max_grad_norm > 0) {
    factors.clip =
        ClipFactor(op.max_grad_norm, std::sqrt(*op.clip_sum_of_squares));
  }
  return factors;
}

}  // namespace qlora::kernels
