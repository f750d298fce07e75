// Model directories with random weights, of any size: for tests and benchmarks.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace qlora::trainer {

// config.json of a Llama of 135 M parameters: SmolLM's shape.
extern const std::string_view kLlama135M;

// Writes config.json and model.safetensors (bfloat16; matrices about N(0,
// 0.02), norms 1, no biases) into an existing directory. The same config gives
// the same bytes. Errors as ParseModelConfig's and WriteSafetensors'.
absl::Status WriteRandomModel(const std::string& directory,
                              std::string_view config);

}  // namespace qlora::trainer
