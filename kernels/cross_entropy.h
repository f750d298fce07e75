// Softmax cross-entropy over a chunk of logits, turned in place into its
// gradient.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace qlora::kernels {

inline constexpr double kCrossEntropyError = 16;

// What the loss of a row depends on besides its logits and its target.
struct LossOptions {
  // Of the gradient.
  float scale = 1;
  // In [0, 1).
  float label_smoothing = 0;
  // At least 0.
  float z_loss = 0;
  // Finite, at least 0; 0: none.
  float soft_cap = 0;
};

// For row r with target t >= 0, z = soft_cap * tanh(logits / soft_cap) (or the
// logits, without a cap), lse = log sum exp z in float32, C columns, s the
// label smoothing:
//
//   loss[r] = (1 - s) * (lse - z[t]) + s * (lse - mean(z)) + z_loss * lse^2
//
// and the gradient is that of scale * loss[r]. A row with a target below 0 is
// ignored: loss 0, gradient 0. Targets are below C: not checked on a device.
// Terms whose factor is 0 are left out, so a logit of -inf has probability 0;
// a row with a NaN, a +inf or nothing but -inf has a NaN loss and gradient.
// Sources: label smoothing, Szegedy et al. (arXiv 1512.00567); z-loss,
// Chowdhery et al., PaLM (arXiv 2204.02311); the cap, Gemma 2 (arXiv
// 2408.00118).
//
// No rows: nothing is written. The CPU backends answer kUnsupported to float16.
//
// A backend differs from the reference, with l = 1 + log C + the row's largest
// |z|, by at most kCrossEntropyError * 2^-24 times l (1 + z_loss l) for the
// loss, or scale * (1 + 2 z_loss l) (1 + l) for the gradient, and one unit in
// the last place of what is stored.
struct CrossEntropy {
  // [rows, C], any type; holds the gradient afterwards if `backward`.
  View logits = {};
  const int32_t* targets = nullptr;
  LossOptions options = {};
  bool backward = false;
  // [rows], written.
  double* loss = nullptr;
};

}  // namespace qlora::kernels
