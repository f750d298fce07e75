// Whether the files of a model fit its description: what can be told without
// loading weights and without a text library, before a node is taken. Pure
// functions; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_description.h"

namespace qlora {

// Far above the largest known tokenizer.json (34 MB).
inline constexpr size_t kMaxTokenizerBytes = 128 << 20;

// Null for a tensor that is not there.
using FindTensor = std::function<const TensorInfo*(const std::string& name)>;

// InvalidArgument naming the tensor when it is missing (null), has another
// shape or is not of a floating-point type.
absl::Status CheckModelTensor(const TensorInfo* tensor, const std::string& name,
                              const std::vector<int64_t>& shape);

// The same for every tensor that the model needs; the first that is wrong.
absl::Status CheckModelTensors(const ModelDescription& model,
                               const FindTensor& find);

// InvalidArgument naming the tensor and whose it is ("the model") if any of its
// values is not finite.
absl::Status CheckFinite(std::span<const float> values, const std::string& name,
                         const std::string& owner);

// InvalidArgument if the text is no tokenizer.json, or one whose vocabulary has
// ids that the model has not. Tokens added to the vocabulary may lie beyond it,
// as padding of some models does: they do no harm unless the data has them.
absl::Status CheckTokenizer(std::string_view tokenizer_json,
                            const ModelDescription& model);

}  // namespace qlora
