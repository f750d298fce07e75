// Attention inside documents laid end to end, memory linear in their length.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace qlora::kernels {

enum class AttentionMask {
  // Query at position i sees keys [0, i].
  kCausal,
  // Every key of the document.
  kBidirectional,
  // As causal, and the first prefix[d] keys of document d to everybody.
  kPrefix,
};

inline constexpr double kAttentionError = 16;

// out = softmax(mask(cap(scale * q k^T))) v per document and head; cap(x) =
// soft_cap * tanh(x / soft_cap). Query head h reads key-value head h / (heads /
// kv_heads). A query that sees no key cannot be. A document may be empty,
// and there may be none. Source of the tiles with running maxima and sums: Dao
// et al., FlashAttention (arXiv 2205.14135), after Milakov and Gimelshein
// (arXiv 1805.02867).
//
// A backend differs from the reference by at most kAttentionError * u * (1 + s)
// * (the largest magnitude of the result + m), where u is 2^-24 (bfloat16:
// 2^-8), s the largest scale * |q| |k|, and m the largest magnitude of v, for
// lse s, and for gradients that of dout (dv), or scale * |dout| |v| times that
// of k (dq) or q (dk). A NaN or infinity in q, k, v or dout may make any result
// of its document and key-value head NaN, and none of another's.
//
// WorkspaceBytes reads dim, offsets, documents and past.
struct Attention {
  int heads = 0;
  // Divides heads.
  int kv_heads = 0;
  // Of a head of q and k, and of v and out; up to 256.
  int dim = 0;
  AttentionMask mask = AttentionMask::kCausal;
  // Of the positions that a query sees, only the last `window` up to its own
  // (and, bidirectional, the first `window` from its own on); 0: all. A prefix
  // is seen besides. At least 0.
  int64_t window = 0;
  // [documents], with kPrefix.
  const int32_t* prefix = nullptr;
  // Finite; 0: 1 / sqrt(dim).
  float scale = 0;
  // Finite, at least 0; 0: none.
  float soft_cap = 0;
  // Document d is rows [offsets[d], offsets[d + 1]); ascending, from 0 to the
  // rows of q. Read on the host.
  const int32_t* offsets = nullptr;
  int64_t documents = 0;
  // For decoding: one document, `past` more rows of k and v stand before those,
  // fewer than 2^31. Causal or windowed, forward only.
  int64_t past = 0;
  // float32 or bfloat16, all of one type: [rows, heads * dim], [past + rows,
  // kv_heads * dim] twice, and as q.
  View q = {};
  View k = {};
  View v = {};
  View out = {};
  // [heads, rows] log-sum-exp; written unless null. Backward reads it.
  float* lse = nullptr;
};

// `forward` as after the forward. The gradients overwrite dq, dk, dv, laid out
// as q, k, v, which may not overlap the inputs.
struct AttentionBackward {
  Attention forward = {};
  View dout = {};
  View dq = {};
  View dk = {};
  View dv = {};
};

}  // namespace qlora::kernels
