// Row kernels, built once per instruction set and chosen at run time. Each
// works on one row (or one attention task) on the calling thread.
//
// T is what products are computed in: float or Bf16. Arithmetic is float32.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/adamw_factors.h"
#include "kernels/cpu/bf16_product.h"
#include "kernels/cpu/simd/attention_task.h"
#include "kernels/cross_entropy.h"
#include "kernels/optimizer.h"
#include "kernels/rows.h"
#include "kernels/types.h"

namespace qlora::kernels {

struct NormRow {
  const float* x;
  int64_t n;
  const float* weight;
  // RMSNorm only.
  float weight_offset;
  // LayerNorm only; may be null.
  const float* bias;
  float eps;
  // Whether the output goes past the caches.
  bool stream;
  // Written; mean by LayerNorm only.
  float* mean;
  float* rstd;
};

struct NormGradRow {
  const float* x;
  int64_t n;
  const float* weight;
  float weight_offset;
  float mean;
  float rstd;
  // Added to.
  float* dx;
};

// The rotation of one token: `heads` heads of `dim` elements.
struct Turn {
  const float* cos;
  const float* sin;
  // -1 turns back.
  float sign;
  int heads;
  int dim;
  int rotary_dim;
};

template <typename T>
struct Kernels {
  // rows.h has the formulas.
  void (*rms_norm)(const NormRow& row, T* out);
  void (*layer_norm)(const NormRow& row, T* out);
  // Gradients of x, and of the weight: dweight += (x - mean) * rstd * dy.
  void (*rms_norm_backward)(const NormGradRow& row, const T* dy);
  void (*layer_norm_backward)(const NormGradRow& row, const T* dy);
  void (*norm_weight)(const float* x, int64_t n, float mean, float rstd,
                      const T* dy, float* dweight);
  // All heads of a token; then one head with its norm.
  void (*rotate)(const Turn& turn, T* x);
  void (*norm_rotate)(const Turn& turn, const float* weight, float eps, T* x,
                      float* rstd);
  void (*norm_rotate_backward)(const Turn& turn, const T* input,
                               const float* weight, float rstd, T* grad);
  void (*norm_rotate_weight)(const Turn& turn, const T* grad, const T* input,
                             float rstd, float* dweight);
  // By Activation.
  void (*gated[3])(const T* gate, const T* up, int64_t n, bool stream, T* out);
  void (*gated_backward[3])(T* gate, T* up, T* d, int64_t n);
  // x += y * scale.
  void (*add)(const T* y, int64_t n, float scale, float* x);
  // out = x, and x * scale.
  void (*from_float)(const float* x, int64_t n, float scale, T* out);
  void (*to_float)(const T* x, int64_t n, float scale, float* out);
  // The loss of a row; its gradient takes the logits' place if `backward`.
  double (*cross_entropy)(T* logits, int64_t n, int64_t target,
                          const LossOptions& options, bool backward);
  void (*attention)(const AttentionTask<T>& task);
  void (*attention_backward)(const AttentionTask<T>& task);
};

// Chooses which elements dropout keeps.
struct DropoutRow {
  uint64_t key;
  uint32_t module;
  // Elements with random words below this are dropped.
  uint32_t threshold;
  // 1 / (1 - p).
  float scale;
};

// The same bytes for every instruction set.
struct ExactKernels {
  void (*dropout_float32)(const float* x, int64_t n, const DropoutRow& row,
                          bool add, float* out);
  void (*dropout_bfloat16)(const Bf16* x, int64_t n, const DropoutRow& row,
                           bool add, Bf16* out);
  // One chunk of SumOfSquares.
  double (*sum_of_squares)(const float* x, int64_t n);
  // Returns the sum of squares of the gradient before clipping.
  double (*adamw)(const AdamWFactors& factors, int64_t n, float* param,
                  float* grad, float* exp_avg, float* exp_avg_sq);
};

struct KernelSet {
  Kernels<float> float32;
  Kernels<Bf16> bfloat16;
  const ExactKernels* exact;
  // As bfloat16's attention and attention_backward, on a product of tiles.
  void (*attention_tiles)(const AttentionTask<Bf16>& task,
                          const Bf16Product& product);
  void (*attention_tiles_backward)(const AttentionTask<Bf16>& task,
                                   const Bf16Product& product);
};

struct NamedKernelSet {
  // "avx512".
  const char* name;
  const KernelSet* kernels;
};

// What this processor runs, the best first.
std::span<const NamedKernelSet> SupportedKernels();

}  // namespace qlora::kernels
