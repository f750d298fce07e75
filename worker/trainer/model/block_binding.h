// Puts together what a block needs for one call: frozen views from the source,
// trainable ones and their gradients from the flat buffers.
#pragma once

#include <span>

#include "common/spec/model_description.h"
#include "worker/trainer/model/block.h"
#include "worker/trainer/model/parameters.h"
#include "worker/trainer/model/workspace.h"

namespace qlora::trainer {

struct BindOptions {
  const ModelDescription* model = nullptr;
  const Parameters* parameters = nullptr;
  const LoraOptions* lora = nullptr;
  // Empty: the frozen model alone.
  std::span<const float> params;
  // Empty: no backward.
  std::span<float> grads;
  // Empty: no dropout.
  std::span<const uint64_t> row_keys;
};

// positions, offsets and state stay unset. With method full the weights are in
// params and `weights` is not looked at.
BlockArgs BindBlock(const BindOptions& options, int layer,
                    const BlockWeights& weights);
OuterWeights BindOuter(const BindOptions& options, const OuterWeights& weights);

BlockContext MakeBlockContext(const ModelDescription& model, Dtype dtype,
                              const Workspace& workspace);

}  // namespace qlora::trainer
