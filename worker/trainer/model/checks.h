// Refusals that Model and Decoder share.
#pragma once

#include "absl/status/status.h"
#include "common/spec/model_description.h"
#include "worker/trainer/model/model.h"
#include "worker/trainer/ops/view.h"

namespace qlora::trainer {

// kAuto has been resolved by the memory plan; here it means float32.
Dtype ComputeType(ComputeDtype dtype);

// InvalidArgument for options that contradict the model.
absl::Status CheckModelOptions(const ModelDescription& model,
                               const ModelOptions& options);

// InvalidArgument naming what is out of range: more tokens than fit, a token
// or target outside the vocabulary, offsets or positions that do not agree.
absl::Status CheckBatch(const ModelDescription& model, int64_t max_tokens,
                        const MicroBatch& batch);

// The same for tokens alone.
absl::Status CheckTokens(const ModelDescription& model,
                         std::span<const int32_t> tokens);

}  // namespace qlora::trainer
