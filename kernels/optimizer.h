// AdamW over flat buffers, with torch.optim.AdamW's formula (decoupled weight
// decay), and the gradient's norm. Source: Loshchilov and Hutter
// (arXiv 1711.05101); 8-bit moments: Dettmers et al. (arXiv 2110.02861).
//
// Ranks on unlike processors keep replicas of parameters and moments, so every
// backend gives the reference's bytes of them (a NaN's aside): the error
// constant is 0, float32 without fused multiply-add. Sums are in the order
// below on CPUs, bytes too; a device has a fixed order of its own, and a sum of
// n squares differs by at most n * 2^-53 times itself.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace qlora::kernels {

// Elements with a scale of their own in 8-bit moments.
inline constexpr int kMomentBlockSize = 256;

// Either float32 moments, or 8-bit ones: codes of the dynamic maps (signed for
// the first, unsigned for the second) with a scale per kMomentBlockSize.
struct Moments {
  float* exp_avg = nullptr;
  float* exp_avg_sq = nullptr;

  uint8_t* exp_avg_codes = nullptr;
  float* exp_avg_scale = nullptr;
  uint8_t* exp_avg_sq_codes = nullptr;
  float* exp_avg_sq_scale = nullptr;
};

// With g the clipped gradient, c1 = 1 - beta1^step and c2 = 1 - beta2^step:
//
//   exp_avg += (1 - beta1) * (g - exp_avg)
//   exp_avg_sq = exp_avg_sq * beta2 + (1 - beta2) * g * g
//   param = param * (1 - learning_rate * weight_decay) -
//           learning_rate / c1 * (exp_avg / (sqrt(exp_avg_sq) / sqrt(c2) +
//                                            epsilon))
//
// NaN and infinities spread as IEEE 754 has it, a NaN norm to the clipped
// gradient; n = 0 writes nothing but sums, which are 0.
//
// 8-bit moments are decoded first; the parameter is updated by what is then
// encoded, as QuantizeDynamic does it.
//
// On a device the step, the learning rate and what follows from them are part
// of the launch: a captured graph repeats its step.
//
// The workspace holds the sums of chunks; WorkspaceBytes reads n and whether
// there is grad_sum_of_squares.
struct AdamW {
  int64_t n = 0;
  float* param = nullptr;
  // Set to 0 in the same pass.
  float* grad = nullptr;
  Moments moments;
  double learning_rate = 0;
  // Both in [0, 1).
  double beta1 = 0.9;
  double beta2 = 0.999;
  // At least 0.
  double epsilon = 1e-8;
  double weight_decay = 0;
  // Counted from 1.
  int64_t step = 1;
  // Clipping: with max_grad_norm > 0 the gradient is multiplied by min(1,
  // max_grad_norm / (sqrt(*clip_sum_of_squares) + 1e-6)) first, which is what
  // SumOfSquares gave for it (torch.nn.utils.clip_grad_norm_'s formula) and
  // must be there. 0: none.
  double max_grad_norm = 0;
  const double* clip_sum_of_squares = nullptr;
  // What SumOfSquares gives for the gradient, in the same pass; written unless
  // null. Before clipping. May be clip_sum_of_squares, which is read first.
  double* grad_sum_of_squares = nullptr;
};

// The sum of x^2 in float64: sixteen lanes, element i in lane i % 16, over each
// chunk of kSumChunk elements; the lanes of a chunk in order, the chunks in
// order. WorkspaceBytes reads n.
inline constexpr int64_t kSumLanes = 16;
inline constexpr int64_t kSumChunk = 16384;

struct SumOfSquares {
  int64_t n = 0;
  const float* x = nullptr;
  double* sum = nullptr;
};

}  // namespace qlora::kernels
