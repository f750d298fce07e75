#include "kernels/head_loss.h"

#include "kernels/reference/element.h"
#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {
namespace {

void AddRowGrads(const HeadLoss& op, int64_t r, const float* grad) {
  for (int64_t i = 0; i < op.x.columns; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < op.weight.rows; ++c) {
      sum += double{grad[c]} * Get(op.weight, c, i);
    }
    Set(op.dx, r, i, static_cast<float>(sum));
    for (int64_t c = 0; op.dweight.data != nullptr && c < op.weight.rows; ++c) {
      op.dweight.row<float>(c)[i] += grad[c] * Get(op.x, r, i);
    }
  }
}

}  // namespace

// `op.gemm` is not used.
Result Reference::Do(const Launch& launch, const HeadLoss& op) const {
  auto* logits = static_cast<float*>(launch.workspace);
  for (int64_t r = 0; r < op.x.rows; ++r) {
    op.loss[r] = 0;
    for (int64_t i = 0; op.dx.data != nullptr && i < op.dx.columns; ++i) {
      Set(op.dx, r, i, 0);
    }
    if (op.targets[r] < 0) continue;
    for (int64_t c = 0; c < op.weight.rows; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < op.x.columns; ++i) {
        sum += double{Get(op.x, r, i)} * Get(op.weight, c, i);
      }
      logits[c] = static_cast<float>(sum);
    }
    Do(launch, CrossEntropy{.logits = FloatView(logits, 1, op.weight.rows),
                            .targets = op.targets + r,
                            .options = op.options,
                            .backward = op.dx.data != nullptr,
                            .loss = op.loss + r});
    if (op.dx.data != nullptr) AddRowGrads(op, r, logits);
  }
  return Result::kOk;
}

int64_t Reference::Room(const HeadLoss& op, int /*threads*/) const {
  return op.weight.rows * static_cast<int64_t>(sizeof(float));
}

}  // namespace qlora::kernels
