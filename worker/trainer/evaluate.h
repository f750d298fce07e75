// The loss over a data set, by all ranks of a gang together.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/model/model.h"
#include "worker/trainer/parallel/communicator.h"

namespace qlora::trainer {

// What computes: one rank's model and the weights of the gang.
struct GangModel {
  Communicator& communicator;
  Model& model;
  BlockSource& weights;
  // Rows per forward.
  int micro_batch_size = 1;
  // Called before each micro-batch of a step or an evaluation; may be empty.
  std::function<void()> on_micro_batch = nullptr;
};

// Collective. The sum over the rows with these numbers, on every rank.
// Numerical errors are the caller's to see.
absl::StatusOr<LossSum> EvaluateRows(const GangModel& gang,
                                     std::span<const float> params,
                                     const Dataset& data,
                                     const std::vector<int64_t>& rows);

// 0, 1, ... data.size() - 1.
std::vector<int64_t> AllRows(const Dataset& data);

}  // namespace qlora::trainer
