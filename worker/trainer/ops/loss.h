// The final norm, the head and the cross-entropy (kernels/head_loss.h): the
// logits of one chunk of tokens exist at a time. Throws c10::Error (see
// torch_guard.h).
#pragma once

#include <cstdint>
#include <span>

#include "worker/trainer/model/weights.h"
#include "worker/trainer/ops/view.h"

namespace qlora::trainer {

struct LossArgs {
  // Residual stream after the last block, float32 [tokens, hidden].
  View x;
  // Per token, kIgnoredLabel where not trained.
  std::span<const int32_t> targets;
  const float* norm = nullptr;
  float norm_eps = 0;
  // Dense.
  LinearWeight head;
  Dtype dtype = Dtype::kFloat32;
  // Tokens whose logits exist at a time.
  int64_t chunk = 0;

  // Buffers.
  void* normed = nullptr;    // compute type [tokens, hidden]
  void* dnormed = nullptr;   // the same; backward only
  float* rstd = nullptr;     // tokens
  double* losses = nullptr;  // tokens
  void* scratch = nullptr;
  int64_t scratch_bytes = 0;  // at least LossScratchBytes
};

// What a backward adds to; null for frozen weights.
struct LossGrads {
  // float32 [tokens, hidden], overwritten: gradient of x.
  View dx;
  float* dnorm = nullptr;
  float* dhead = nullptr;
};

int64_t LossScratchBytes(Dtype dtype, int64_t tokens, int64_t chunk,
                         int64_t vocab, int64_t hidden);

// Sum of -log p over the trained targets.
double Loss(const LossArgs& args);
// The same, and the gradient of scale * sum.
double LossBackward(const LossArgs& args, float scale, const LossGrads& grads);

// logits = x W^T for any number of rows, through panels of the head where it
// is of another type; `weight` is a buffer of that many elements for one.
void HeadLogits(const LinearWeight& head, const View& x, void* weight,
                int64_t weight_elements, const View& logits);

}  // namespace qlora::trainer
