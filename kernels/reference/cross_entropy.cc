#include <algorithm>
#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {
namespace {

double RowLoss(const CrossEntropy& op, int64_t r) {
  const View& logits = op.logits;
  const LossOptions& o = op.options;
  const auto n = static_cast<double>(logits.columns);
  const int64_t target = op.targets[r];
  const auto at = [&](int64_t c) -> double {
    const double v = Get(logits, r, c);
    return o.soft_cap > 0 ? o.soft_cap * std::tanh(v / o.soft_cap) : v;
  };
  double max = -INFINITY;
  double total = 0;
  for (int64_t c = 0; c < logits.columns; ++c) {
    max = std::max(max, at(c));
    total += at(c);
  }
  double sum = 0;
  for (int64_t c = 0; c < logits.columns; ++c) sum += std::exp(at(c) - max);
  const double lse = std::log(sum) + max;
  const double s = o.label_smoothing;
  double loss = (1 - s) * (lse - at(target));
  if (s > 0) loss += s * (lse - total / n);
  if (o.z_loss > 0) loss += o.z_loss * lse * lse;
  if (!op.backward) return loss;

  const double pull = o.z_loss > 0 ? 1 + 2 * o.z_loss * lse : 1;
  for (int64_t c = 0; c < logits.columns; ++c) {
    const double z = at(c);
    const double slope =
        o.soft_cap > 0 ? 1 - z / o.soft_cap * (z / o.soft_cap) : 1;
    const double picked = c == target ? 1 - s : 0;
    Set(logits, r, c,
        o.scale * (std::exp(z - max) / sum * pull - s / n - picked) * slope);
  }
  return loss;
}

}  // namespace

Result Reference::Do(const Launch& /*launch*/, const CrossEntropy& op) const {
  for (int64_t r = 0; r < op.logits.rows; ++r) {
    if (op.targets[r] >= 0) {
      op.loss[r] = RowLoss(op, r);
      continue;
    }
    op.loss[r] = 0;
    for (int64_t c = 0; op.backward && c < op.logits.columns; ++c) {
      Set(op.logits, r, c, 0);
    }
  }
  return Result::kOk;
}

}  // namespace qlora::kernels
