#include "worker/trainer/model/checks.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace qlora::trainer {

Dtype ComputeType(ComputeDtype dtype) {
  return dtype == ComputeDtype::kBfloat16 ? Dtype::kBfloat16 : Dtype::kFloat32;
}

absl::Status CheckModelOptions(const ModelDescription& model,
                               const ModelOptions& options) {
  if (model.head_dim % 2 != 0 ||
      static_cast<int>(model.rope_inv_freq.size()) != model.head_dim / 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head_dim is ", model.head_dim, " but rotary embedding has ",
        model.rope_inv_freq.size(), " frequencies; expected half of it"));
  }
  const LoraOptions& lora = options.lora;
  if (!lora.modules.empty() && lora.rank <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("lora.rank must be positive, is ", lora.rank));
  }
  if (!(lora.dropout >= 0 && lora.dropout < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("lora.dropout must be in [0, 1), is ", lora.dropout));
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(const ModelDescription& model,
                         std::span<const int32_t> tokens) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= model.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token ", tokens[i], " at place ", i,
          " is outside the model's vocabulary of ", model.vocab_size,
          "; the tokenizer does not belong to this model"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBatch(const ModelDescription& model, int64_t max_tokens,
                        const MicroBatch& batch) {
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  if (rows == 0 || rows > max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a micro-batch of ", rows,
                     " tokens; the workspace holds 1 to ", max_tokens));
  }
  RETURN_IF_ERROR(CheckTokens(model, batch.tokens));
  const auto& offsets = batch.offsets;
  if (batch.targets.size() != batch.tokens.size() ||
      batch.positions.size() != batch.tokens.size() || offsets.size() < 2 ||
      offsets.front() != 0 || offsets.back() != rows ||
      !std::ranges::is_sorted(offsets)) {
    return absl::InvalidArgumentError(
        "a micro-batch whose targets, positions or offsets do not fit its "
        "tokens");
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t target = batch.targets[i];
    if (target != kIgnoredLabel && (target < 0 || target >= model.vocab_size)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "target ", target, " at place ", i,
          " is outside the model's vocabulary of ", model.vocab_size));
    }
    if (batch.positions[i] < 0 || batch.positions[i] >= max_tokens) {
      return absl::InvalidArgumentError(absl::StrCat(
          "position ", batch.positions[i], " at place ", i,
          " is outside the workspace of ", max_tokens, " positions"));
    }
  }
  return absl::OkStatus();
}

}  // namespace qlora::trainer
