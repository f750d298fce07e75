// What the trainer and the planner know about a model: built from an HF
// config.json, one description for all supported decoders instead of a class a
// model. Values only.
//
// Source of the fields and defaults: the transformers configuration classes
// (docs/formats/model.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace qlora {

enum class Activation { kSilu, kGeluTanh, kGelu };

struct ModelDescription {
  // "llama", "mistral" or "qwen2".
  std::string architecture;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int64_t max_position_embeddings = 0;
  // Tokens that the model was made for: the same with rope scaling.
  int64_t context_length = 0;
  double rms_norm_eps = 1e-6;
  Activation activation = Activation::kSilu;
  bool tie_word_embeddings = false;
  bool q_bias = false, k_bias = false, v_bias = false, o_bias = false;
  bool mlp_bias = false;
  // Inverse frequencies of rotary embedding, head_dim / 2 values, scaling
  // (default, linear, llama3) already applied.
  std::vector<float> rope_inv_freq;
  double initializer_range = 0.02;
  int bos_token_id = -1;
  // config.json and generation_config.json may name several.
  std::vector<int> eos_token_ids;
  // "float32", "bfloat16" or "float16".
  std::string torch_dtype = "float32";

  int64_t q_size() const { return int64_t{num_heads} * head_dim; }
  int64_t kv_size() const { return int64_t{num_kv_heads} * head_dim; }
};

// One linear layer of a block, in PEFT's and HF's names.
struct LinearShape {
  // "self_attn.q_proj", relative to the block.
  std::string name;
  int64_t out_features;
  int64_t in_features;
  bool bias;
};

// q, k, v, o, gate, up, down: in this order.
std::vector<LinearShape> BlockLinears(const ModelDescription& model);

// InvalidArgument: not JSON, a field missing or of a wrong type; Unimplemented:
// an architecture or option that is not supported (the message lists what is).
absl::StatusOr<ModelDescription> ParseModelConfig(
    std::string_view config_json, std::string_view generation_config_json = "");

// Reads DIR/config.json (and generation_config.json if there).
absl::StatusOr<ModelDescription> ReadModelDescription(
    const std::string& directory);

int64_t ParameterCount(const ModelDescription& model);

// Modules ("model.layers.3.self_attn.q_proj") that LoRA adapts: PEFT's rules
// for target_modules (empty list: all-linear). InvalidArgument if a name
// matches nothing.
absl::StatusOr<std::vector<std::string>> MatchTargetModules(
    const ModelDescription& model, const std::vector<std::string>& targets);

}  // namespace qlora
