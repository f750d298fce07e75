// The kernel library's ops over rows (kernels/rows.h) as the model uses them,
// on the pool. Results do not depend on the number of threads. "Float" views
// are float32, the others of the compute type.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/rows.h"
#include "worker/trainer/ops/view.h"

namespace qlora::trainer {

// out[t] = table[tokens[t]] as float32; table of either type.
void Embedding(std::span<const int32_t> tokens, const View& table,
               const View& out);
// grad[tokens[t]] += dx[t].
void EmbeddingBackward(std::span<const int32_t> tokens, const View& dx,
                       const View& grad);

// out = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps), kept per row. x Float.
void RmsNorm(const View& x, const float* w, float eps, const View& out,
             float* rstd);
// dx += the gradient; x and dx Float. So with dw, unless that is null.
void RmsNormBackward(const View& x, const float* w, const float* rstd,
                     const View& dy, const View& dx, float* dw);

// Cosines and sines per position, [positions, dim / 2].
struct RotaryTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int dim = 0;
  int64_t positions = 0;
};
void FillRotaryTable(std::span<const float> inv_freq, int64_t positions,
                     float* cos, float* sin);
// Rotates every head of x in place (halves convention); or back, which is the
// gradient.
void Rotate(const RotaryTable& table, std::span<const int32_t> positions,
            bool inverse, const View& x);

// out = activation(gate) * up.
void GatedActivation(kernels::Activation activation, const View& gate,
                     const View& up, const View& out);
// In: d is the gradient of out. After: gate and up hold their gradients, d
// holds out.
void GatedActivationBackward(kernels::Activation activation, const View& gate,
                             const View& up, const View& d);

// x += y; x Float.
void AddTo(const View& y, const View& x);
// Between the types, or a copy.
void Convert(const View& x, const View& out);
// Every row becomes `bias`.
void FillRows(const float* bias, const View& out);
// Every row += `bias`; x Float.
void AddRow(const float* bias, const View& x);
// sums[c] += sum over rows of y[., c].
void AddColumnSums(const View& y, float* sums);

}  // namespace qlora::trainer
