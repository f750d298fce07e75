#include "worker/trainer/optim/adamw.h"

#include <cmath>
#include <cstddef>
#include <utility>

#include "worker/trainer/run_op.h"

namespace qlora::trainer {

double GlobalNorm(std::span<const float> values,
                  const kernels::ParallelFor& parallel_for) {
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  double sum = 0;
  const kernels::SumOfSquares op{.n = static_cast<int64_t>(values.size()),
                                 .x = values.data(),
                                 .sum = &sum};
  kernels::Launch launch{.parallel_for = parallel_for};
  launch.workspace_bytes = KernelBackend().WorkspaceBytes(op, launch.threads);
  std::vector<Line> workspace(launch.workspace_bytes / sizeof(Line) + 1);
  launch.workspace = workspace.data();
  RunOp(launch, op);
  return std::sqrt(sum);
}

AdamW::AdamW(const AdamWOptions& options, std::vector<AdamWRange> ranges,
             int64_t total, const kernels::ParallelFor& parallel_for)
    : options_(options),
      ranges_(std::move(ranges)),
      parallel_for_(parallel_for),
      exp_avg_(total),
      exp_avg_sq_(total) {}

void AdamW::Step(int64_t step, double learning_rate, double grad_norm,
                 std::span<float> params, std::span<float> grads) {
  // Its root is grad_norm, to the last bit.
  const double sum_of_squares = grad_norm * grad_norm;
  for (const AdamWRange& range : ranges_) {
    const int64_t at = range.offset;
    RunOp(
        {.parallel_for = parallel_for_},
        kernels::AdamW{.n = range.size,
                       .param = params.data() + at,
                       .grad = grads.data() + at,
                       .moments = {.exp_avg = exp_avg_.data() + at,
                                   .exp_avg_sq = exp_avg_sq_.data() + at},
                       .learning_rate = learning_rate,
                       .beta1 = options_.beta1,
                       .beta2 = options_.beta2,
                       .epsilon = options_.epsilon,
                       .weight_decay = range.decay ? options_.weight_decay : 0,
                       .step = step,
                       .max_grad_norm = options_.max_grad_norm,
                       .clip_sum_of_squares = &sum_of_squares});
  }
}

}  // namespace qlora::trainer
