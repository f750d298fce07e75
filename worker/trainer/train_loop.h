// One optimizer step of a gang. Used by one thread; every rank makes the same
// calls.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/trainer/batches.h"
#include "worker/trainer/data/sampler.h"
#include "worker/trainer/evaluate.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/optim/schedule.h"

namespace qlora::trainer {

// What ranks want to happen after a step; any rank's wish is every rank's.
struct Wishes {
  bool stop = false;
  bool save = false;
  bool evaluate = false;
  bool log = false;
};

struct StepReport {
  int64_t step = 0;
  // Mean over the trained tokens of the global batch, before the update.
  double loss = 0;
  // Before clipping.
  double grad_norm = 0;
  double learning_rate = 0;
  int64_t tokens_trained = 0;
  int64_t tokens_total = 0;
  Wishes wishes;
};

class TrainLoop {
 public:
  struct Parts {
    GangModel gang;
    const Dataset& data;
    BatchSampler& sampler;
    AdamW& optimizer;
    Schedule schedule;
    uint64_t dropout_seed = 0;
    // layout().total elements.
    std::span<float> params;
    const kernels::ParallelFor& parallel_for;
    PhaseClock& clock;
  };
  // What parts refer to must outlive the loop.
  explicit TrainLoop(const Parts& parts);

  // Trains the batch at the cursor and moves it on. Steps count from 1. A
  // numerical error (failure.h) leaves params untouched.
  absl::StatusOr<StepReport> Step(int64_t step, DataCursor* cursor,
                                  const Wishes& wishes);

 private:
  RankBatch NextBatch(DataCursor* cursor);
  absl::StatusOr<LossSum> ForwardBackward(int64_t step, const RankBatch& batch);
  // Sums gradients and losses over the ranks, and joins their wishes.
  absl::Status Reduce(LossSum* loss, Wishes* wishes);

  const Parts parts_;
  std::vector<float> grads_;
};

}  // namespace qlora::trainer
