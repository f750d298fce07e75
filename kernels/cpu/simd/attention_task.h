// What the CPU's attention kernels are given: the query heads that share one
// key-value head, in one document, or a part of them.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/types.h"

namespace qlora::kernels {

// Rows of queries and keys that are handled together. Where a task is cut into
// parts the cuts are multiples of it, so that sums have the same order however
// many parts there are.
inline constexpr int64_t kAttentionTile = 64;

// Which keys a query sees: [Low(p), High(p)) for position p, and [0, prefix).
// Both ends ascend with p.
struct Sight {
  int64_t keys;
  int64_t window;
  int64_t prefix;
  bool bidirectional;
};

// Heads of q, out, dq and dout lie side by side, `dim` apart.
template <typename T>
struct AttentionTask {
  const T* q;
  const T* k;
  const T* v;
  int64_t q_stride, k_stride, v_stride;
  T* out;
  int64_t out_stride;
  // Log-sum-exp per head and query, heads lse_stride apart; may be null in
  // forward.
  float* lse;
  int64_t lse_stride;
  // Query i stands at position past + i.
  int64_t queries;
  int64_t past;
  Sight sight;
  int heads;
  int dim;
  float scale;
  float soft_cap;
  // The part: whose out or dq is written, and whose dk and dv.
  int64_t query_begin, query_end;
  int64_t key_begin, key_end;
  // AttentionScratchFloats elements, aligned to 64 bytes.
  float* scratch;
  // Backward only; dq has q's layout, dk and dv k's and v's. Either dq or dk
  // and dv may be null: not computed.
  const T* dout;
  int64_t dout_stride;
  T* dq;
  T* dk;
  T* dv;
  int64_t dq_stride, dk_stride, dv_stride;
};

// Enough for Scratch (attention.inc) and TileScratch (attention_bf16.inc).
inline int64_t AttentionScratchFloats(int64_t keys, int dim) {
  const int64_t padded = (dim + 31) / 32 * 32;
  const int64_t rows =
      (keys + kAttentionTile - 1) / kAttentionTile * kAttentionTile;
  return (5 * rows + 3 * kAttentionTile) * padded +
         4 * kAttentionTile * kAttentionTile;
}

}  // namespace qlora::kernels
