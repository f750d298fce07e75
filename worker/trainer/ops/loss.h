// Head and cross-entropy over chunks of tokens: the logits of one chunk exist
// at a time and turn in place into their gradient; tokens without a target are
// left out before the product. Throws c10::Error (see torch_guard.h).
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
  LinearWeight head;
  Dtype dtype = Dtype::kFloat32;

  // Buffers of the compute type unless said otherwise.
  int64_t chunk = 0;
  void* logits = nullptr;   // chunk * vocab
  void* normed = nullptr;   // chunk * hidden
  void* dnormed = nullptr;  // chunk * hidden
  float* rstd = nullptr;    // chunk, float32
  int32_t* rows = nullptr;  // tokens
  void* weight = nullptr;   // weight_elements, for a head of another type
  int64_t weight_elements = 0;
};

// What a backward adds to; null for frozen weights.
struct LossGrads {
  // float32 [tokens, hidden], overwritten: gradient of x.
  View dx;
  float* dnorm = nullptr;
  float* dhead = nullptr;
};

// Sum of -log p over the trained targets.
double Loss(const LossArgs& args);
// The same, and the gradient of scale * sum.
double LossBackward(const LossArgs& args, float scale, const LossGrads& grads);

// logits = x W^T for any number of rows, through panels of the head where it
// is of another type.
void HeadLogits(const LinearWeight& head, const View& x, void* weight,
                int64_t weight_elements, const View& logits);

}  // namespace qlora::trainer
