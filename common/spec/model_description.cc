#include "common/spec/model_description.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"
#include "common/spec/rope.h"

namespace qlora {
namespace {

using Json = nlohmann::json;

constexpr char kSupported[] =
    "supported are LlamaForCausalLM, MistralForCausalLM and Qwen2ForCausalLM";

// What differs between the families (docs/formats/model.md).
struct Family {
  std::string_view model_type;
  std::string_view causal_lm;
  // 0: as many as heads.
  int64_t default_kv_heads;
  int64_t default_positions;
};

constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM", 0, 2048},
    {"mistral", "MistralForCausalLM", 8, 131072},
    {"qwen2", "Qwen2ForCausalLM", 32, 32768},
};

// The class named in "architectures", "" without one.
std::string ArchitectureClass(JsonFields& config) {
  if (!config.Has("architectures")) return "";
  const Json& list = config.Get("architectures");
  if (list.is_array() && !list.empty() && list[0].is_string()) {
    return list[0].get<std::string>();
  }
  config.Fail("architectures", "must be a list of class names");
  return "";
}

const Family* FindFamily(JsonFields& config) {
  const std::string type = config.String("model_type", "");
  const std::string architecture = ArchitectureClass(config);
  if (type.empty() && architecture.empty()) {
    config.Fail("model_type", "is missing");
    return nullptr;
  }
  for (const Family& family : kFamilies) {
    if ((type.empty() || type == family.model_type) &&
        (architecture.empty() || architecture == family.causal_lm)) {
      return &family;
    }
  }
  config.Refuse(
      architecture.empty() ? "model_type" : "architectures",
      absl::StrCat("is ", ShownJson(architecture.empty() ? type : architecture),
                   type.empty() ? "" : " of model_type " + ShownJson(type),
                   ", which is not supported; ", kSupported));
  return nullptr;
}

int64_t ReadKvHeads(const Json& json, JsonFields& config, const Family& family,
                    int64_t heads) {
  const bool family_default =
      !json.contains("num_key_value_heads") && family.default_kv_heads != 0;
  const int64_t kv_heads =
      config.Integer("num_key_value_heads", 1, 1 << 14,
                     family_default ? family.default_kv_heads : heads);
  if (heads % kv_heads != 0) {
    config.Fail(
        "num_key_value_heads",
        absl::StrCat("is ", kv_heads,
                     ", which does not divide num_attention_heads, ", heads));
  }
  return kv_heads;
}

// The largest head that attention is computed of (kernels/attention.h).
constexpr int64_t kMaxHeadDim = 256;

int64_t ReadHeadDim(JsonFields& config, int64_t hidden, int64_t heads) {
  if (!config.Has("head_dim") && hidden % heads != 0) {
    config.Fail("hidden_size",
                absl::StrCat("is ", hidden, ", which num_attention_heads, ",
                             heads, ", does not divide"));
  }
  const int64_t head_dim = config.Integer("head_dim", 1, 1 << 14,
                                          std::max<int64_t>(1, hidden / heads));
  if (head_dim % 2 != 0) {
    config.Fail("head_dim", absl::StrCat("is ", head_dim,
                                         "; rotary embedding needs an even "
                                         "one"));
  }
  if (heads * head_dim > 1 << 20) {
    config.Fail("head_dim",
                absl::StrCat("times num_attention_heads is ", heads * head_dim,
                             ", more than 1048576"));
  }
  if (head_dim > kMaxHeadDim) {
    config.Refuse("head_dim", absl::StrCat("is ", head_dim,
                                           "; supported is attention with "
                                           "heads of up to ",
                                           kMaxHeadDim));
  }
  return head_dim;
}

// The limits keep every product of sizes far from overflow.
void ReadSizes(const Json& json, JsonFields& config, const Family& family,
               ModelDescription& model) {
  model.vocab_size = config.Integer("vocab_size", 1, 1 << 26);
  model.hidden_size = config.Integer("hidden_size", 1, 1 << 18);
  model.intermediate_size = config.Integer("intermediate_size", 1, 1 << 20);
  model.num_layers =
      static_cast<int>(config.Integer("num_hidden_layers", 1, 4096));
  model.num_heads =
      static_cast<int>(config.Integer("num_attention_heads", 1, 1 << 14));
  model.num_kv_heads =
      static_cast<int>(ReadKvHeads(json, config, family, model.num_heads));
  model.head_dim =
      static_cast<int>(ReadHeadDim(config, model.hidden_size, model.num_heads));
  model.max_position_embeddings = config.Integer(
      "max_position_embeddings", 1, 1 << 30, family.default_positions);
}

void ReadBiases(JsonFields& config, ModelDescription& model) {
  if (model.architecture == "qwen2") {
    model.q_bias = model.k_bias = model.v_bias = true;
  } else if (model.architecture == "llama") {
    const bool attention = config.Bool("attention_bias", false);
    model.q_bias = model.k_bias = model.v_bias = model.o_bias = attention;
    model.mlp_bias = config.Bool("mlp_bias", false);
  }
}

void ReadActivation(JsonFields& config, ModelDescription& model) {
  const std::string name = config.String("hidden_act", "silu");
  if (name == "silu" || name == "swish") {
    model.activation = Activation::kSilu;
  } else if (name == "gelu_pytorch_tanh" || name == "gelu_new") {
    model.activation = Activation::kGeluTanh;
  } else if (name == "gelu") {
    model.activation = Activation::kGelu;
  } else {
    config.Refuse("hidden_act", absl::StrCat("is ", ShownJson(name),
                                             "; supported are silu, gelu and "
                                             "gelu_pytorch_tanh"));
  }
}

// A window that no position can leave changes nothing.
void CheckWindow(const Json& json, JsonFields& config,
                 const ModelDescription& model) {
  if (config.Has("layer_types")) {
    for (const Json& type : config.Get("layer_types")) {
      if (type == "full_attention") continue;
      config.Refuse("layer_types",
                    absl::StrCat("has ", ShownJson(type),
                                 "; only full_attention is supported"));
      return;
    }
    return;
  }
  bool windowed = false;
  if (model.architecture == "mistral") {
    windowed = !json.contains("sliding_window") || config.Has("sliding_window");
  } else if (model.architecture == "qwen2") {
    windowed =
        config.Bool("use_sliding_window", false) &&
        config.Integer("max_window_layers", 0, 1 << 30, 28) < model.num_layers;
  }
  if (!windowed) return;
  const int64_t window =
      config.Integer("sliding_window", 1, int64_t{1} << 40, 4096);
  if (window >= model.max_position_embeddings) return;
  config.Refuse("sliding_window",
                absl::StrCat("is ", window, ", below max_position_embeddings (",
                             model.max_position_embeddings,
                             "); sliding-window attention is not supported"));
}

void ReadDtype(JsonFields& config, ModelDescription& model) {
  const char* name = config.Has("dtype") ? "dtype" : "torch_dtype";
  model.torch_dtype = config.String(name, "float32");
  if (model.torch_dtype != "float32" && model.torch_dtype != "bfloat16" &&
      model.torch_dtype != "float16") {
    config.Refuse(name,
                  absl::StrCat("is ", ShownJson(model.torch_dtype),
                               "; supported are float32, bfloat16, float16"));
  }
}

// Far more than any model has.
constexpr size_t kMaxTokenIds = 256;

void AddTokenIds(JsonFields& config, const char* name,
                 const ModelDescription& model, std::vector<int>& ids) {
  if (!config.Has(name)) return;
  const Json& value = config.Get(name);
  const Json list = value.is_array() ? value : Json::array({value});
  for (const Json& id : list) {
    if (!id.is_number_unsigned() ||
        id.get<uint64_t>() >= static_cast<uint64_t>(model.vocab_size)) {
      config.Fail(name,
                  absl::StrCat("must be a token id below vocab_size (",
                               model.vocab_size, ") or a list of such, not ",
                               ShownJson(value)));
      return;
    }
    const int number = id.get<int>();
    if (std::find(ids.begin(), ids.end(), number) != ids.end()) continue;
    if (ids.size() == kMaxTokenIds) {
      config.Fail(name, absl::StrCat("lists more than ", kMaxTokenIds, " ids"));
      return;
    }
    ids.push_back(number);
  }
}

void ReadModel(const Json& json, JsonFields& config, const Family& family,
               ModelDescription& model) {
  model.architecture = family.model_type;
  ReadSizes(json, config, family, model);
  model.rms_norm_eps = config.Positive("rms_norm_eps", 1e-6);
  model.tie_word_embeddings = config.Bool("tie_word_embeddings", false);
  model.initializer_range = config.Positive("initializer_range", 0.02);
  ReadBiases(config, model);
  ReadActivation(config, model);
  CheckWindow(json, config, model);
  ReadDtype(config, model);
  std::vector<int> bos;
  AddTokenIds(config, "bos_token_id", model, bos);
  if (!bos.empty()) model.bos_token_id = bos[0];
  AddTokenIds(config, "eos_token_id", model, model.eos_token_ids);
  if (config.Has("quantization_config")) {
    config.Refuse("quantization_config",
                  "is there: the weights are quantized already, which is not "
                  "supported; give the unquantized model");
  }
}

}  // namespace

absl::StatusOr<ModelDescription> ParseModelConfig(
    std::string_view config_json, std::string_view generation_config_json) {
  ASSIGN_OR_RETURN(const Json json,
                   ParseJsonObject(config_json, "config.json"));
  absl::Status status;
  JsonFields config(json, "config.json: ", status);
  const Family* family = FindFamily(config);
  if (family == nullptr) return status;
  ModelDescription model;
  ReadModel(json, config, *family, model);
  RETURN_IF_ERROR(status);
  Rope rope = ReadRope(json, model.head_dim, "config.json: ", status);
  model.rope_inv_freq = std::move(rope.inv_freq);
  model.context_length = static_cast<int64_t>(
      static_cast<double>(model.max_position_embeddings) * rope.length_factor);
  if (!generation_config_json.empty()) {
    ASSIGN_OR_RETURN(
        const Json generation,
        ParseJsonObject(generation_config_json, "generation_config.json"));
    JsonFields fields(generation, "generation_config.json: ", status);
    AddTokenIds(fields, "eos_token_id", model, model.eos_token_ids);
  }
  RETURN_IF_ERROR(status);
  return model;
}

absl::StatusOr<ModelDescription> ReadModelDescription(
    const std::string& directory) {
  const std::string path = directory + "/config.json";
  absl::StatusOr<std::string> config = ReadFile(path, kMaxJsonBytes);
  if (absl::IsNotFound(config.status())) {
    return absl::NotFoundError(
        absl::StrCat(path,
                     ": not found; a model directory has config.json, "
                     "tokenizer.json and safetensors files"));
  }
  RETURN_IF_ERROR(config.status());
  absl::StatusOr<std::string> generation =
      ReadFile(directory + "/generation_config.json", kMaxJsonBytes);
  if (absl::IsNotFound(generation.status())) generation = std::string();
  RETURN_IF_ERROR(generation.status());
  absl::StatusOr<ModelDescription> model =
      ParseModelConfig(*config, *generation);
  if (model.ok()) return model;
  return absl::Status(model.status().code(),
                      absl::StrCat(directory, ": ", model.status().message()));
}

}  // namespace qlora
