#include "worker/trainer/ops/rows.h"

#include <cmath>

#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/run_op.h"

namespace qlora::trainer {
namespace {

template <typename Op>
void Run(const Op& op) {
  RunOp(KernelLaunch(), op);
}

}  // namespace

void Embedding(std::span<const int32_t> tokens, const View& table,
               const View& out) {
  Run(kernels::Embedding{
      .tokens = tokens.data(), .table = table, .scale = 1, .out = out});
}

void EmbeddingBackward(std::span<const int32_t> tokens, const View& dx,
                       const View& grad) {
  Run(kernels::EmbeddingBackward{
      .tokens = tokens.data(), .scale = 1, .dx = dx, .dtable = grad});
}

void RmsNorm(const View& x, const float* w, float eps, const View& out,
             float* rstd) {
  Run(kernels::RmsNorm{
      .x = x, .weight = w, .eps = eps, .out = out, .rstd = rstd});
}

void RmsNormBackward(const View& x, const float* w, const float* rstd,
                     const View& dy, const View& dx, float* dw) {
  Run(kernels::RmsNormBackward{
      .x = x, .weight = w, .rstd = rstd, .dy = dy, .dx = dx, .dweight = dw});
}

void FillRotaryTable(std::span<const float> inv_freq, int64_t positions,
                     float* cos, float* sin) {
  for (int64_t p = 0; p < positions; ++p) {
    for (const float frequency : inv_freq) {
      const float angle = static_cast<float>(p) * frequency;
      *cos++ = std::cos(angle);
      *sin++ = std::sin(angle);
    }
  }
}

void Rotate(const RotaryTable& table, std::span<const int32_t> positions,
            bool inverse, const View& x) {
  Run(kernels::Rotary{.x = x,
                      .heads = static_cast<int>(x.columns / table.dim),
                      .dim = table.dim,
                      .rotary_dim = table.dim,
                      .cos = table.cos,
                      .sin = table.sin,
                      .positions = table.positions,
                      .position = positions.data(),
                      .inverse = inverse});
}

void GatedActivation(kernels::Activation activation, const View& gate,
                     const View& up, const View& out) {
  Run(kernels::GatedActivation{
      .activation = activation, .gate = gate, .up = up, .out = out});
}

void GatedActivationBackward(kernels::Activation activation, const View& gate,
                             const View& up, const View& d) {
  Run(kernels::GatedActivationBackward{
      .activation = activation, .gate = gate, .up = up, .d = d});
}

void AddTo(const View& y, const View& x) { Run(kernels::Add{y, x}); }

void Convert(const View& x, const View& out) { Run(kernels::Convert{x, out}); }

void FillRows(const float* bias, const View& out) {
  Run(kernels::Convert{FloatView(bias, 1, out.columns), out});
}

void AddRow(const float* bias, const View& x) {
  Run(kernels::Add{FloatView(bias, 1, x.columns), x});
}

void AddColumnSums(const View& y, float* sums) {
  Run(kernels::ColumnSums{y, sums});
}

}  // namespace qlora::trainer
