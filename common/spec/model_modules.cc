// The linear layers of a described model, and which of them LoRA adapts.
#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/base/edit_distance.h"
#include "common/spec/model_description.h"

namespace qlora {
namespace {

// Bounds the work for a list that nobody checked; models have seven kinds of
// linear layers.
constexpr size_t kMaxTargets = 1024;

// PEFT's rule for a list: equal, or a suffix after a dot.
bool Matches(absl::string_view module, absl::string_view target) {
  return module == target ||
         (absl::ConsumeSuffix(&module, target) && absl::EndsWith(module, "."));
}

bool IsAllLinear(const std::vector<std::string>& targets) {
  return targets.empty() || (targets.size() == 1 &&
                             absl::AsciiStrToLower(targets[0]) == "all-linear");
}

absl::Status NoMatch(const ModelDescription& model, const std::string& target) {
  for (const std::string outer : {"lm_head", "model.embed_tokens"}) {
    if (!Matches(outer, target)) continue;
    return absl::UnimplementedError(
        absl::StrCat("lora.target_modules: '", target,
                     "' is not a linear layer of a block; adapters on the "
                     "embedding and the head are not supported"));
  }
  std::vector<std::string> names;
  for (const LinearShape& linear : BlockLinears(model)) {
    names.push_back(linear.name.substr(linear.name.find('.') + 1));
  }
  const std::string nearest = *std::ranges::min_element(
      names, {}, [&](const std::string& n) { return EditDistance(target, n); });
  const std::string hint = EditDistance(target, nearest) <= 3
                               ? absl::StrCat("; did you mean ", nearest, "?")
                               : "";
  return absl::InvalidArgumentError(
      absl::StrCat("lora.target_modules: '", target,
                   "' matches no module of the model; its linear layers are ",
                   absl::StrJoin(names, ", "), hint));
}

}  // namespace

std::vector<LinearShape> BlockLinears(const ModelDescription& model) {
  const int64_t hidden = model.hidden_size;
  const int64_t inner = model.intermediate_size;
  return {
      {"self_attn.q_proj", model.q_size(), hidden, model.q_bias},
      {"self_attn.k_proj", model.kv_size(), hidden, model.k_bias},
      {"self_attn.v_proj", model.kv_size(), hidden, model.v_bias},
      {"self_attn.o_proj", hidden, model.q_size(), model.o_bias},
      {"mlp.gate_proj", inner, hidden, model.mlp_bias},
      {"mlp.up_proj", inner, hidden, model.mlp_bias},
      {"mlp.down_proj", hidden, inner, model.mlp_bias},
  };
}

int64_t ParameterCount(const ModelDescription& model) {
  int64_t block = 2 * model.hidden_size;
  for (const LinearShape& linear : BlockLinears(model)) {
    block += linear.out_features * linear.in_features;
    if (linear.bias) block += linear.out_features;
  }
  const int64_t table = model.vocab_size * model.hidden_size;
  return model.num_layers * block + model.hidden_size +
         (model.tie_word_embeddings ? 1 : 2) * table;
}

absl::StatusOr<std::vector<std::string>> MatchTargetModules(
    const ModelDescription& model, const std::vector<std::string>& targets) {
  if (targets.size() > kMaxTargets) {
    return absl::InvalidArgumentError(
        absl::StrCat("lora.target_modules: has ", targets.size(),
                     " names; at most ", kMaxTargets, " are matched"));
  }
  const bool all = IsAllLinear(targets);
  std::vector<bool> used(targets.size(), false);
  std::vector<std::string> modules;
  for (int layer = 0; layer < model.num_layers; ++layer) {
    for (const LinearShape& linear : BlockLinears(model)) {
      std::string module =
          absl::StrCat("model.layers.", layer, ".", linear.name);
      bool matched = all;
      for (size_t i = 0; i < targets.size() && !all; ++i) {
        if (!Matches(module, targets[i])) continue;
        used[i] = matched = true;
      }
      if (matched) modules.push_back(std::move(module));
    }
  }
  for (size_t i = 0; i < targets.size() && !all; ++i) {
    if (!used[i]) return NoMatch(model, targets[i]);
  }
  return modules;
}

}  // namespace qlora
