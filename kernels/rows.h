// Ops that work row by row: norms, rotary embedding, gated activations,
// dropout, embedding. Arithmetic is float32, whatever the types of the views;
// what is stored is rounded once, to nearest even. NaN and infinities spread as
// IEEE 754 has it; where the reference's wider sums and slopes stay finite and
// float32's do not (a row of |x| above 1.8e19 has an infinite sum of squares, a
// slope may vanish), a backend may give 0, infinity or NaN. Views with no rows
// are allowed and leave everything alone. The CPU backends have float32 and
// bfloat16, and answer kUnsupported to float16 but in Convert's x.
//
// A backend differs from the reference by at most kRowError * 2^-24 times a
// magnitude m that each op names, its terms each the largest of the row (for a
// weight's gradient: of all rows), and one unit in the last place of what is
// stored; Dropout, Embedding, Convert, Add and ColumnSums by nothing, a NaN's
// bits included; but a signaling one may become quiet, and of two that meet
// either may stay.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace qlora::kernels {

inline constexpr double kRowError = 16;

// x += add (if there is one); out = x * rstd * (weight + weight_offset), rstd =
// 1 / sqrt(mean(x^2) + eps). m: |out| + 1 + |weight|; of rstd itself. Source:
// Zhang and Sennrich (arXiv 1910.07467).
struct RmsNorm {
  // float32 [rows, n].
  View x;
  // [rows, n] of any type, or no data: nothing is added and x stays as it is.
  View add = {};
  // [n].
  const float* weight = nullptr;
  // 1 for Gemma.
  float weight_offset = 0;
  // At least 0, here and below.
  float eps = 0;
  // [rows, n], any type.
  View out;
  // [rows], written.
  float* rstd = nullptr;
};

// dx += gradient of x; dweight += that of the weight, rows in order. With h =
// |x| rstd and g = (1 + |weight|) |dy|, m: |dx| + rstd g (2 + h^2); for dweight
// |dweight| + rows |dy| (1 + h).
struct RmsNormBackward {
  // x as the forward left it, float32.
  View x;
  const float* weight = nullptr;
  float weight_offset = 0;
  const float* rstd = nullptr;
  // Gradient of out, any type.
  View dy;
  // float32.
  View dx;
  // [n], or null for a frozen weight.
  float* dweight = nullptr;
};

// As RmsNorm, with out = (x - mean) * rstd * weight + bias and rstd = 1 /
// sqrt(variance + eps), the variance biased. m: |out| + (1 + rstd |x|) (1 +
// |weight|) + |bias|; of the mean |mean| + |x|. Source: Ba et al. (arXiv
// 1607.06450).
struct LayerNorm {
  View x;
  View add = {};
  const float* weight = nullptr;
  // [n], or null.
  const float* bias = nullptr;
  float eps = 0;
  View out;
  // Each [rows], written.
  float* mean = nullptr;
  float* rstd = nullptr;
};

// As RmsNormBackward, with h = (|x| + |mean|) rstd; dbias += gradient of the
// bias, with dweight's m.
struct LayerNormBackward {
  // x as the forward left it, float32 [rows, n].
  View x;
  // [n].
  const float* weight = nullptr;
  // Each [rows], as the forward wrote them.
  const float* mean = nullptr;
  const float* rstd = nullptr;
  // [rows, n]: gradient of out, any type; of x, float32.
  View dy;
  View dx;
  // Each [n], or null for frozen ones.
  float* dweight = nullptr;
  float* dbias = nullptr;
};

inline constexpr int kMostHeadDim = 1024;

// Rotates heads in place, the convention of halves: elements i and i +
// rotary_dim / 2 of a head turn together. m: 2 |x|; with norms 2 |x| (1 +
// |norm|) (1 + rstd), of rstd itself. Source: Su et al., RoFormer (arXiv
// 2104.09864), as transformers' rotate_half.
struct Rotary {
  // [tokens, columns >= heads * dim]: heads side by side from column 0 (q, then
  // k, of a packed q/k/v).
  View x;
  int heads = 0;
  // At most kMostHeadDim.
  int dim = 0;
  // Even, at most dim; the rest of a head stays.
  int rotary_dim = 0;
  // [positions, rotary_dim / 2]; every scaling of the frequencies is in them.
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t positions = 0;
  // [tokens], each in [0, positions): not checked on a device.
  const int32_t* position = nullptr;
  // Turns back, which is the gradient. Not with norms: RotaryNormBackward.
  bool inverse = false;

  // RMSNorm over each head before it turns: the first query_heads heads with
  // query_norm [dim], the others with key_norm. Null: those have none.
  const float* query_norm = nullptr;
  const float* key_norm = nullptr;
  // In [0, heads].
  int query_heads = 0;
  // At least 0.
  float norm_eps = 0;
  // [tokens, heads], written where there is a norm.
  float* rstd = nullptr;
};

// The gradient of a rotation with norms, in place of that of its result. With h
// = |input| rstd, m: 2 |x| (1 + |norm|) (1 + rstd) (1 + h^2); for a norm's
// gradient itself + 2 rows heads |x| h.
struct RotaryNormBackward {
  // As in the forward, without inverse; x is the gradient, rstd is read.
  Rotary rotary;
  // What the forward's x held before.
  View input;
  // [dim], added to in the order of tokens and heads; null for frozen weights.
  float* dquery_norm = nullptr;
  float* dkey_norm = nullptr;
};

enum class Activation {
  kSilu,
  // By the error function, and by the tanh formula (gelu_pytorch_tanh).
  kGelu,
  kGeluTanh,
};

// out = activation(gate) * up. m: (1 + min(|gate|, 100)) (1 + |up|). Source:
// Shazeer, "GLU variants improve Transformer" (arXiv 2002.05202).
struct GatedActivation {
  Activation activation = Activation::kSilu;
  // All [rows, columns], of one type.
  View gate;
  View up;
  View out;
};

// In: d is the gradient of out. After: gate and up hold their gradients, d
// holds out. m: the forward's times 1 + |d|.
struct GatedActivationBackward {
  Activation activation = Activation::kSilu;
  View gate;
  View up;
  View d;
};

// out = x / (1 - probability) where kept, else 0; out += that if `add`. Element
// (r, c) falls out where word c % 4 of Philox4x32-10 with counter {c / 4,
// module, 0, 0} and key row_keys[r] is less than probability * 2^32. Source:
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
struct Dropout {
  View x = {};
  // [rows].
  const uint64_t* row_keys = nullptr;
  uint32_t module = 0;
  // In [0, 1).
  float probability = 0;
  bool add = false;
  // Of x's type; may be x.
  View out = {};
};

// out[r] = table[tokens[r]] * scale.
struct Embedding {
  // [out.rows], each in [0, table.rows): not checked on a device.
  const int32_t* tokens = nullptr;
  View table;
  float scale = 1;
  // float32.
  View out;
};

// dtable[tokens[r]] += dx[r] * scale, r ascending.
struct EmbeddingBackward {
  const int32_t* tokens = nullptr;
  float scale = 1;
  // float32, both.
  View dx;
  View dtable;
};

// out = x, between the types.
struct Convert {
  // As out, or one row that becomes each of out's.
  View x;
  View out;
};

// x += y.
struct Add {
  // As x, or one row that is added to each of x's; any type.
  View y;
  // float32.
  View x;
};

// sums[c] += x[r][c], r ascending.
struct ColumnSums {
  View x;
  // [x.columns].
  float* sums = nullptr;
};

}  // namespace qlora::kernels
