#include "worker/trainer/evaluate.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "common/base/status_macros.h"
#include "worker/trainer/batches.h"

namespace qlora::trainer {

absl::StatusOr<LossSum> EvaluateRows(const GangModel& gang,
                                     std::span<const float> params,
                                     const Dataset& data,
                                     const std::vector<int64_t>& rows) {
  const int world_size = gang.communicator.size();
  // One micro-batch a rank at a time: memory of one batch.
  const size_t step = static_cast<size_t>(world_size) * gang.micro_batch_size;
  std::array<double, 2> sums = {0, 0};
  for (size_t begin = 0; begin < rows.size(); begin += step) {
    if (gang.on_micro_batch) gang.on_micro_batch();
    const size_t end = std::min(rows.size(), begin + step);
    const RankBatch batch = MakeRankBatch(
        data, {rows.begin() + begin, rows.begin() + end},
        gang.communicator.rank(), world_size, gang.micro_batch_size);
    if (batch.micro_batches.empty()) {
      RETURN_IF_ERROR(gang.model.SkipEvaluate(gang.weights));
      continue;
    }
    ASSIGN_OR_RETURN(
        const LossSum loss,
        gang.model.Evaluate(batch.micro_batches[0], gang.weights, params));
    sums[0] += loss.loss;
    sums[1] += static_cast<double>(loss.tokens);
  }
  RETURN_IF_ERROR(gang.communicator.AllReduceSum(std::span<double>(sums)));
  return LossSum{.loss = sums[0], .tokens = static_cast<int64_t>(sums[1])};
}

std::vector<int64_t> AllRows(const Dataset& data) {
  std::vector<int64_t> rows(data.size());
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

}  // namespace qlora::trainer
