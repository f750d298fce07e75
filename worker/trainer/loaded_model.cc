#include "worker/trainer/loaded_model.h"

#include <utility>

#include "common/base/status_macros.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_files.h"
#include "worker/trainer/ops/parallel.h"

namespace qlora::trainer {
namespace {

// Of method full, whose weights are all trainable: a model takes those from its
// parameters.
class NoFrozenWeights : public BlockSource {
 public:
  absl::StatusOr<BlockWeights> Acquire(int) override { return Error(); }
  absl::StatusOr<OuterWeights> AcquireOuter() override { return Error(); }

 private:
  static absl::Status Error() {
    return absl::InternalError("method full has no frozen weights");
  }
};

absl::Status ReadTrainable(const std::string& directory,
                           const TrainableLayout& layout,
                           std::span<float> params) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsReader> reader,
                   SafetensorsReader::OpenModel(directory));
  for (const TrainableTensor& t : layout.tensors) {
    RETURN_IF_ERROR(CheckModelTensor(reader->Find(t.name), t.name, t.shape));
    const std::span<float> values = params.subspan(t.offset, t.size);
    RETURN_IF_ERROR(reader->ReadFloat32(t.name, values));
    RETURN_IF_ERROR(CheckFinite(values, t.name, "the model"));
  }
  return absl::OkStatus();
}

}  // namespace

SlabOptions SlabOptionsFor(const JobSpec& spec, ComputeDtype compute_dtype) {
  SlabOptions options;
  options.dense = compute_dtype == ComputeDtype::kBfloat16
                      ? WeightFormat::kBfloat16
                      : WeightFormat::kFloat32;
  options.linear =
      spec.method == Method::kQlora ? WeightFormat::kNf4 : options.dense;
  options.block_size = spec.quantization.block_size;
  options.double_quant = spec.quantization.double_quant;
  return options;
}

absl::StatusOr<std::unique_ptr<ShardedBlockSource>> LoadFrozen(
    const std::string& directory, const ModelDescription& description,
    const SlabOptions& options, Communicator& communicator) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsReader> reader,
                   SafetensorsReader::OpenModel(directory));
  return ShardedBlockSource::Load(description, *reader, options, communicator,
                                  KernelParallelFor());
}

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Load(
    const std::string& directory, const JobSpec& spec,
    const ModelDescription& description, const ModelOptions& options,
    Communicator& communicator) {
  std::unique_ptr<LoadedModel> loaded(new LoadedModel());
  ASSIGN_OR_RETURN(loaded->model_, Model::Create(description, options));
  const TrainableLayout& layout = loaded->layout();
  loaded->params_.resize(layout.total);
  if (options.method == Method::kFull) {
    if (spec.model.random_init) {
      InitializeTrainable(description, layout, spec.train.seed,
                          loaded->params_);
    } else {
      RETURN_IF_ERROR(ReadTrainable(directory, layout, loaded->params_));
    }
    loaded->weights_ = std::make_unique<NoFrozenWeights>();
    return loaded;
  }
  InitializeTrainable(description, layout, spec.train.seed, loaded->params_);
  ASSIGN_OR_RETURN(
      auto sharded,
      LoadFrozen(directory, description,
                 SlabOptionsFor(spec, options.compute_dtype), communicator));
  loaded->sharded_ = sharded.get();
  loaded->weights_ = std::move(sharded);
  return loaded;
}

GatherCounts LoadedModel::counts() const {
  return sharded_ == nullptr ? GatherCounts() : sharded_->counts();
}

}  // namespace qlora::trainer
