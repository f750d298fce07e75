// Causal attention inside documents laid end to end; grouped query heads.
#pragma once

#include <cstdint>
#include <span>

#include "worker/trainer/ops/view.h"

namespace qlora::trainer {

struct AttentionShape {
  int heads = 0;
  int kv_heads = 0;
  int dim = 0;
};

// Document d is rows [offsets[d], offsets[d + 1]) of q, k, v and out. For
// decoding: one document, `past` more rows of k and v stand before those.
struct AttentionArgs {
  AttentionShape shape;
  std::span<const int32_t> offsets;
  int64_t past = 0;
  View q;
  View k;
  View v;
  View out;
  // [heads, rows] log-sum-exp; null where no backward follows.
  float* lse = nullptr;
  // AttentionScratchBytes.
  void* scratch = nullptr;
};

// What both directions need for documents of up to max_keys rows.
int64_t AttentionScratchBytes(const AttentionShape& shape, int64_t max_keys,
                              int threads);

void Attention(const AttentionArgs& args);
// args as after the forward. The gradients overwrite dq, dk, dv, which may not
// overlap the inputs.
void AttentionBackward(const AttentionArgs& args, const View& dout,
                       const View& dq, const View& dk, const View& dv);

}  // namespace qlora::trainer
