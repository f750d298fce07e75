// Row kernels, built once per instruction set and chosen at run time. Each
// works on one row (or one attention task) on the calling thread.
//
// T is what products are computed in: float or Bf16. Arithmetic is float32.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/types.h"

namespace qlora::kernels {

// Rows of queries and keys that are handled together.
inline constexpr int64_t kAttentionTile = 64;

// Causal attention of the query heads that share one key-value head, in one
// document. Heads of q, out, dq and dout lie side by side, `dim` apart.
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
  // Query i stands at position past + i and sees keys [0, past + i].
  int64_t queries;
  int64_t past;
  int heads;
  int dim;
  float scale;
  // AttentionScratchFloats elements.
  float* scratch;
  // Backward only; dq has q's layout, dk and dv k's and v's.
  const T* dout;
  int64_t dout_stride;
  T* dq;
  T* dk;
  T* dv;
  int64_t dq_stride, dk_stride, dv_stride;
};

// As Scratch in attention.inc cuts it.
inline int64_t AttentionScratchFloats(int64_t keys, int dim) {
  const int64_t padded = (dim + 15) / 16 * 16;
  const int64_t rows =
      (keys + kAttentionTile - 1) / kAttentionTile * kAttentionTile;
  return (5 * rows + 3 * kAttentionTile) * padded +
         2 * kAttentionTile * (kAttentionTile + 1);
}

// Chooses which elements dropout keeps.
struct DropoutRow {
  // Random for the row.
  uint32_t key[2];
  // Elements with random bits below this are dropped.
  uint32_t threshold;
  // 1 / (1 - p).
  float scale;
};

template <typename T>
struct Kernels {
  // out = x * rstd * w.
  void (*rms_norm)(const float* x, const float* w, int64_t n, float eps, T* out,
                   float* rstd);
  // dx += gradient of rms_norm.
  void (*rms_norm_backward)(const float* x, const float* w, float rstd,
                            const T* dy, int64_t n, float* dx);
  // dw += its gradient with respect to w.
  void (*rms_norm_weight)(const float* x, float rstd, const T* dy, int64_t n,
                          float* dw);
  // Rotates `heads` heads in place; sin negated turns back.
  void (*rotate)(T* x, const float* cos, const float* sin, float sign,
                 int heads, int dim);
  // out = silu(gate) * up.
  void (*swiglu)(const T* gate, const T* up, int64_t n, T* out);
  // In: d = d(loss)/d(out). Out: gate, up hold their gradients, d holds out.
  void (*swiglu_backward)(T* gate, T* up, T* d, int64_t n);
  // x += y.
  void (*add)(const T* y, int64_t n, float* x);
  void (*from_float)(const float* x, int64_t n, T* out);
  void (*to_float)(const T* x, int64_t n, float* out);
  // out += x where kept, times scale; or out = instead.
  void (*dropout)(const T* x, int64_t n, const DropoutRow& row, bool add,
                  T* out);
  // -log softmax(logits)[target]; with `backward` logits become
  // scale * (softmax - onehot).
  double (*cross_entropy)(T* logits, int64_t n, int64_t target, float scale,
                          bool backward);
  void (*attention)(const AttentionTask<T>& task);
  void (*attention_backward)(const AttentionTask<T>& task);
};

struct KernelSet {
  Kernels<float> float32;
  Kernels<Bf16> bfloat16;
};

struct NamedKernelSet {
  // "avx512".
  const char* name;
  const KernelSet* kernels;
};

// What this processor runs, the best first.
std::span<const NamedKernelSet> SupportedKernels();

inline const KernelSet& SimdKernels() {
  static const KernelSet& best = *SupportedKernels().front().kernels;
  return best;
}

template <typename T>
const Kernels<T>& Simd();
template <>
inline const Kernels<float>& Simd<float>() {
  return SimdKernels().float32;
}
template <>
inline const Kernels<Bf16>& Simd<Bf16>() {
  return SimdKernels().bfloat16;
}

}  // namespace qlora::kernels
