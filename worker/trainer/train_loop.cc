#include "worker/trainer/train_loop.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "worker/trainer/failure.h"

namespace qlora::trainer {
namespace {

absl::Status CheckFinite(const StepReport& report) {
  if (std::isfinite(report.loss) && std::isfinite(report.grad_norm)) {
    return absl::OkStatus();
  }
  // A NaN has a sign, which tells nothing.
  const auto unsigned_nan = [](double value) {
    return std::isnan(value) ? std::abs(value) : value;
  };
  return NumericalError(absl::StrFormat(
      "step %d has loss %g and gradient norm %g: training cannot go on; the "
      "checkpoints before it are kept. Submit the job with a lower "
      "train.learning_rate, with train.max_grad_norm 1 if that is 0, and with "
      "train.compute_dtype float32 if it was bfloat16",
      report.step, unsigned_nan(report.loss), unsigned_nan(report.grad_norm)));
}

}  // namespace

TrainLoop::TrainLoop(const Parts& parts)
    : parts_(parts), grads_(parts.params.size()) {}

absl::StatusOr<StepReport> TrainLoop::Step(int64_t step, DataCursor* cursor,
                                           const Wishes& wishes) {
  const RankBatch batch = NextBatch(cursor);
  StepReport report{.step = step,
                    .learning_rate = LearningRateAt(parts_.schedule, step),
                    .tokens_trained = batch.trained_tokens,
                    .tokens_total = batch.total_tokens,
                    .wishes = wishes};

  ASSIGN_OR_RETURN(LossSum loss, ForwardBackward(step, batch));
  RETURN_IF_ERROR(Reduce(&loss, &report.wishes));
  report.loss =
      loss.loss / std::max(1.0, static_cast<double>(batch.trained_tokens));
  const InPhase optimizing(&parts_.clock, Phase::kOptim);
  report.grad_norm = GlobalNorm(grads_, parts_.parallel_for);
  RETURN_IF_ERROR(CheckFinite(report));
  parts_.optimizer.Step(step, report.learning_rate, report.grad_norm,
                        parts_.params, grads_);
  return report;
}

RankBatch TrainLoop::NextBatch(DataCursor* cursor) {
  const InPhase reading(&parts_.clock, Phase::kData);
  const Communicator& gang = parts_.gang.communicator;
  return MakeRankBatch(parts_.data, parts_.sampler.NextBatch(cursor),
                       gang.rank(), gang.size(), parts_.gang.micro_batch_size);
}

absl::StatusOr<LossSum> TrainLoop::ForwardBackward(int64_t step,
                                                   const RankBatch& batch) {
  Model& model = parts_.gang.model;
  BlockSource& weights = parts_.gang.weights;
  const float loss_scale =
      1.0f / std::max(1.0f, static_cast<float>(batch.trained_tokens));
  LossSum sum;
  for (int64_t round = 0; round < batch.rounds; ++round) {
    if (parts_.gang.on_micro_batch) parts_.gang.on_micro_batch();
    if (round >= static_cast<int64_t>(batch.micro_batches.size())) {
      RETURN_IF_ERROR(model.SkipForwardBackward(weights));
      continue;
    }
    const DropoutKey dropout{.seed = parts_.dropout_seed,
                             .step = static_cast<uint64_t>(step),
                             .document_ids = batch.document_ids[round]};
    ASSIGN_OR_RETURN(
        const LossSum part,
        model.ForwardBackward(batch.micro_batches[round], weights,
                              parts_.params, loss_scale, dropout, grads_));
    sum.loss += part.loss;
    sum.tokens += part.tokens;
  }
  return sum;
}

absl::Status TrainLoop::Reduce(LossSum* loss, Wishes* wishes) {
  const InPhase summing(&parts_.clock, Phase::kComm);
  Communicator& gang = parts_.gang.communicator;
  RETURN_IF_ERROR(gang.AllReduceSum(std::span<float>(grads_)));
  std::array<double, 5> values = {
      loss->loss, double(wishes->stop), double(wishes->save),
      double(wishes->evaluate), double(wishes->log)};
  RETURN_IF_ERROR(gang.AllReduceSum(std::span<double>(values)));
  loss->loss = values[0];
  *wishes = {.stop = values[1] > 0,
             .save = values[2] > 0,
             .evaluate = values[3] > 0,
             .log = values[4] > 0};
  return absl::OkStatus();
}

}  // namespace qlora::trainer
