// The weights of `method: full`: views of the flat trainable buffer, which
// every rank holds whole. Used by one thread.
#pragma once

#include <span>

#include "common/formats/safetensors.h"
#include "common/spec/model_description.h"
#include "worker/trainer/model/model.h"
#include "worker/trainer/model/weights.h"

namespace qlora::trainer {

// Reads the layout's tensors out of a model's files. InvalidArgument names the
// tensor that is missing, wrong or not finite.
absl::Status ReadTrainable(const SafetensorsReader& reader,
                           const TrainableLayout& layout,
                           std::span<float> params);

class FlatBlockSource : public BlockSource {
 public:
  // All must outlive the object; params may change between passes.
  FlatBlockSource(const ModelDescription& model, const TrainableLayout& layout,
                  std::span<const float> params)
      : model_(model), layout_(layout), params_(params) {}

  absl::StatusOr<BlockWeights> Acquire(int layer) override;
  absl::StatusOr<OuterWeights> AcquireOuter() override;

 private:
  // Null if there is no such tensor.
  const float* Find(const std::string& name) const;
  LinearWeight Linear(const std::string& name, int64_t out_features,
                      int64_t in_features) const;

  const ModelDescription& model_;
  const TrainableLayout& layout_;
  const std::span<const float> params_;
};

}  // namespace qlora::trainer
