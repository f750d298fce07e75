// A rank's model in memory: the graph, the frozen weights and the trainable
// values. Used by one thread.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/spec/model_description.h"
#include "worker/trainer/model/model.h"
#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/parallel/sharded_block_source.h"

namespace qlora::trainer {

// How the frozen weights are held for these options.
SlabOptions SlabOptionsFor(const JobSpec& spec, ComputeDtype compute_dtype);

// Frozen weights of a model directory. Collective; for methods other than full.
absl::StatusOr<std::unique_ptr<ShardedBlockSource>> LoadFrozen(
    const std::string& directory, const ModelDescription& description,
    const SlabOptions& options, Communicator& communicator);

class LoadedModel {
 public:
  // Collective. spec, description and communicator must outlive the object.
  // Method full reads its weights from `directory` unless the job wants fresh
  // ones; the others get fresh LoRA matrices.
  static absl::StatusOr<std::unique_ptr<LoadedModel>> Load(
      const std::string& directory, const JobSpec& spec,
      const ModelDescription& description, const ModelOptions& options,
      Communicator& communicator);

  Model& model() { return *model_; }
  BlockSource& weights() { return *weights_; }
  std::span<float> params() { return params_; }
  const TrainableLayout& layout() const { return model_->layout(); }
  // All zero for method full.
  GatherCounts counts() const;

 private:
  LoadedModel() = default;

  std::unique_ptr<Model> model_;
  std::vector<float> params_;
  std::unique_ptr<BlockSource> weights_;
  // weights_, if it is one.
  const ShardedBlockSource* sharded_ = nullptr;
};

}  // namespace qlora::trainer
