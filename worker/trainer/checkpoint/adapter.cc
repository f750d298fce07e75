#include "worker/trainer/checkpoint/adapter.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "common/formats/json_fields.h"
#include "common/spec/model_files.h"

namespace qlora::trainer {
namespace {

using Json = nlohmann::json;

constexpr char kConfigFile[] = "adapter_config.json";
constexpr char kTensorsFile[] = "adapter_model.safetensors";
constexpr char kPrefix[] = "base_model.model.";
constexpr char kSuffixA[] = ".lora_A.weight";
constexpr char kSuffixB[] = ".lora_B.weight";

// Keys that make an adapter something other than A and B on linear layers,
// unless they hold what is said here (null is always fine).
struct PlainValue {
  const char* key;
  const char* json;
};
constexpr PlainValue kPlain[] = {
    {"alora_invocation_tokens", "null"},
    {"alpha_pattern", "{}"},
    {"arrow_config", "null"},
    {"bias", "\"none\""},
    {"fan_in_fan_out", "false"},
    {"kasa_config", "null"},
    {"layer_replication", "null"},
    {"lora_bias", "false"},
    {"megatron_config", "null"},
    {"modules_to_save", "[]"},
    {"monteclora_config", "null"},
    {"rank_pattern", "{}"},
    {"target_parameters", "[]"},
    {"trainable_token_indices", "null"},
    {"use_bdlora", "null"},
    {"use_dora", "false"},
    {"use_qalora", "false"},
    {"velora_config", "null"},
};

// Initializations that also change the base weights.
bool ChangesBase(const Json& init) {
  if (!init.is_string()) return false;
  const std::string& name = init.get_ref<const std::string&>();
  return name != "gaussian" && name != "orthogonal" && name != "eva";
}

void CheckPlain(const Json& json, JsonFields& fields) {
  for (const PlainValue& plain : kPlain) {
    if (!fields.Has(plain.key)) continue;
    if (fields.Get(plain.key) == Json::parse(plain.json)) continue;
    fields.Refuse(plain.key,
                  absl::StrCat("is ", ShownJson(fields.Get(plain.key)),
                               "; only plain LoRA on linear layers is "
                               "supported"));
  }
  if (fields.Has("init_lora_weights") &&
      ChangesBase(json["init_lora_weights"])) {
    fields.Refuse("init_lora_weights",
                  absl::StrCat("is ", ShownJson(json["init_lora_weights"]),
                               ", which changes the base model too; convert "
                               "the adapter to a plain one first"));
  }
}

absl::StatusOr<AdapterConfig> ReadConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kConfigFile);
  absl::StatusOr<std::string> text = ReadFile(path, kMaxJsonBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(
        absl::StrCat(path, ": not found; an adapter directory has ",
                     kConfigFile, " and ", kTensorsFile));
  }
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(*text, path));
  absl::Status status;
  JsonFields fields(json, path + ": ", status);
  const std::string type = fields.String("peft_type");
  if (type != "LORA") {
    fields.Refuse("peft_type", absl::StrCat("is ", ShownJson(type),
                                            "; only LORA is supported"));
  }
  CheckPlain(json, fields);
  AdapterConfig config;
  config.base_model = fields.String("base_model_name_or_path", "");
  config.rank = static_cast<int>(fields.Integer("r", 1, 1 << 20, 8));
  config.alpha = fields.Positive("lora_alpha", 8.0);
  config.dropout = fields.Number("lora_dropout", 0, 1, 0.0);
  config.use_rslora = fields.Bool("use_rslora", false);
  RETURN_IF_ERROR(status);
  return config;
}

std::string KeyA(const std::string& module) {
  return absl::StrCat(kPrefix, module, kSuffixA);
}
std::string KeyB(const std::string& module) {
  return absl::StrCat(kPrefix, module, kSuffixB);
}

absl::Status WrongShape(const Adapter& adapter, const std::string& name,
                        const std::vector<int64_t>& have,
                        const std::vector<int64_t>& want) {
  return absl::InvalidArgumentError(
      absl::StrCat(adapter.directory, "/", kTensorsFile, ": tensor '", name,
                   "' has shape [", absl::StrJoin(have, ", "), "] where [",
                   absl::StrJoin(want, ", "), "] is needed"));
}

absl::Status CheckTensor(const Adapter& adapter, const std::string& name,
                         const std::vector<int64_t>& shape) {
  const TensorInfo* info = adapter.tensors->Find(name);
  if (info == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(adapter.directory, "/",
                                                   kTensorsFile, ": tensor '",
                                                   name, "' is missing"));
  }
  if (info->shape != shape) {
    return WrongShape(adapter, name, info->shape, shape);
  }
  return absl::OkStatus();
}

// The first tensor that is not among the known ones.
absl::Status CheckNothingLeft(const Adapter& adapter,
                              const std::set<std::string>& known,
                              const std::string& why) {
  for (const TensorInfo& info : adapter.tensors->tensors()) {
    if (known.contains(info.name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(adapter.directory, "/",
                                                   kTensorsFile, ": tensor '",
                                                   info.name, "' ", why));
  }
  return absl::OkStatus();
}

// What target_modules has to say so that PEFT adapts exactly these: the last
// parts of the names, or the whole names where some layers are left out.
std::vector<std::string> TargetModules(
    const ModelDescription& model, const std::vector<std::string>& modules) {
  std::set<std::string> short_names;
  for (const std::string& module : modules) {
    short_names.insert(module.substr(module.rfind('.') + 1));
  }
  std::vector<std::string> names(short_names.begin(), short_names.end());
  const absl::StatusOr<std::vector<std::string>> matched =
      MatchTargetModules(model, names);
  if (matched.ok() && matched->size() == modules.size()) return names;
  names = modules;
  std::sort(names.begin(), names.end());
  return names;
}

std::string Shown(const std::vector<std::string>& targets) {
  if (targets.empty()) return "all-linear";
  return Abridged(absl::StrCat("[", absl::StrJoin(targets, ", "), "]"), 300);
}

// PEFT keeps lora_alpha an integer where it can.
Json AlphaJson(double alpha) {
  const bool integral = alpha == std::floor(alpha) && alpha < 1e9;
  return integral ? Json(static_cast<int64_t>(alpha)) : Json(alpha);
}

Json FormatConfig(const AdapterConfig& config,
                  const std::vector<std::string>& targets) {
  const Json none = nullptr;
  return {
      {"alora_invocation_tokens", none},
      {"alpha_pattern", Json::object()},
      {"arrow_config", none},
      {"auto_mapping", none},
      {"base_model_name_or_path", config.base_model},
      {"bias", "none"},
      {"corda_config", none},
      {"ensure_weight_tying", false},
      {"eva_config", none},
      {"exclude_modules", none},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"kasa_config", none},
      {"layer_replication", none},
      {"layers_pattern", none},
      {"layers_to_transform", none},
      {"loftq_config", Json::object()},
      {"lora_alpha", AlphaJson(config.alpha)},
      {"lora_bias", false},
      {"lora_dropout", config.dropout},
      {"lora_ga_config", none},
      {"megatron_config", none},
      {"megatron_core", "megatron.core"},
      {"modules_to_save", none},
      {"monteclora_config", none},
      {"peft_type", "LORA"},
      {"peft_version", none},
      {"qalora_group_size", 16},
      {"r", config.rank},
      {"rank_pattern", Json::object()},
      {"revision", none},
      {"target_modules", targets},
      {"target_parameters", none},
      {"task_type", "CAUSAL_LM"},
      {"trainable_token_indices", none},
      {"use_bdlora", none},
      {"use_dora", false},
      {"use_qalora", false},
      {"use_rslora", config.use_rslora},
      {"velora_config", none},
  };
}

}  // namespace

float AdapterConfig::scale() const {
  return static_cast<float>(use_rslora ? alpha / std::sqrt(rank)
                                       : alpha / rank);
}

AdapterConfig AdapterConfigOf(const JobSpec& spec) {
  return {.base_model = spec.model.base,
          .rank = spec.lora.rank,
          .alpha = spec.lora.alpha,
          .dropout = spec.lora.dropout,
          .use_rslora = spec.lora.use_rslora};
}

absl::StatusOr<Adapter> OpenAdapter(const std::string& directory) {
  Adapter adapter{.directory = directory, .config = {}, .tensors = nullptr};
  ASSIGN_OR_RETURN(adapter.config, ReadConfig(directory));
  ASSIGN_OR_RETURN(adapter.tensors, SafetensorsReader::Open(absl::StrCat(
                                        directory, "/", kTensorsFile)));
  if (adapter.tensors->tensors().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(directory, "/", kTensorsFile, ": has no tensors"));
  }
  return adapter;
}

absl::StatusOr<LoraOptions> LoraOptionsOf(const Adapter& adapter,
                                          const ModelDescription& model) {
  LoraOptions options{.rank = adapter.config.rank,
                      .scale = adapter.config.scale(),
                      .dropout = 0,
                      .modules = {}};
  std::set<std::string> known;
  for (int layer = 0; layer < model.num_layers; ++layer) {
    for (const LinearShape& linear : BlockLinears(model)) {
      std::string module =
          absl::StrCat("model.layers.", layer, ".", linear.name);
      const std::string a = KeyA(module);
      const std::string b = KeyB(module);
      if (adapter.tensors->Find(a) == nullptr &&
          adapter.tensors->Find(b) == nullptr) {
        continue;
      }
      RETURN_IF_ERROR(
          CheckTensor(adapter, a, {options.rank, linear.in_features}));
      RETURN_IF_ERROR(
          CheckTensor(adapter, b, {linear.out_features, options.rank}));
      known.insert({a, b});
      options.modules.push_back(std::move(module));
    }
  }
  RETURN_IF_ERROR(CheckNothingLeft(adapter, known,
                                   "belongs to no linear layer of this model"));
  return options;
}

absl::Status AdoptAdapter(const Adapter& adapter, const ModelDescription& model,
                          JobSpec::Lora& lora) {
  ASSIGN_OR_RETURN(const LoraOptions options, LoraOptionsOf(adapter, model));
  ASSIGN_OR_RETURN(const std::vector<std::string> asked,
                   MatchTargetModules(model, lora.target_modules));
  const AdapterConfig& have = adapter.config;
  const std::vector<std::string> targets =
      TargetModules(model, options.modules);
  absl::Status status;
  // Takes the value over, unless the job file states another.
  const auto adopt = [&](const char* key, bool same, const std::string& theirs,
                         const std::string& stated, auto take) {
    if (lora.from_adapter.contains(key)) return take();
    if (same || !status.ok()) return;
    status = absl::InvalidArgumentError(
        absl::StrCat("adapter ", adapter.directory, " has ", key, " ", theirs,
                     ", the job file says ", stated,
                     "; say the same there, or leave the key out"));
  };
  adopt("lora.rank", have.rank == lora.rank, absl::StrCat(have.rank),
        absl::StrCat(lora.rank), [&] { lora.rank = have.rank; });
  adopt("lora.alpha", have.alpha == lora.alpha, absl::StrCat(have.alpha),
        absl::StrCat(lora.alpha), [&] { lora.alpha = have.alpha; });
  adopt("lora.use_rslora", have.use_rslora == lora.use_rslora,
        have.use_rslora ? "true" : "false", lora.use_rslora ? "true" : "false",
        [&] { lora.use_rslora = have.use_rslora; });
  adopt("lora.target_modules", options.modules == asked, Shown(targets),
        Shown(lora.target_modules), [&] { lora.target_modules = targets; });
  if (status.ok()) lora.from_adapter.clear();
  return status;
}

absl::Status ReadAdapter(const Adapter& adapter, const TrainableLayout& layout,
                         std::span<float> params) {
  if (static_cast<int64_t>(params.size()) != layout.total) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a buffer of ", params.size(), " for a layout of ", layout.total));
  }
  std::set<std::string> known;
  for (const TrainableTensor& tensor : layout.tensors) {
    const std::string name = kPrefix + tensor.name;
    RETURN_IF_ERROR(CheckTensor(adapter, name, tensor.shape));
    known.insert(name);
  }
  RETURN_IF_ERROR(CheckNothingLeft(
      adapter, known, "is of a module that lora.target_modules does not name"));
  for (const TrainableTensor& tensor : layout.tensors) {
    const std::string name = kPrefix + tensor.name;
    const std::span<float> values = params.subspan(tensor.offset, tensor.size);
    RETURN_IF_ERROR(adapter.tensors->ReadFloat32(name, values));
    RETURN_IF_ERROR(
        CheckFinite(values, name, absl::StrCat("adapter ", adapter.directory)));
  }
  return absl::OkStatus();
}

absl::Status WriteAdapter(const std::string& directory,
                          const AdapterConfig& config,
                          const ModelDescription& model,
                          const std::vector<std::string>& modules,
                          const TrainableLayout& layout,
                          std::span<const float> params) {
  std::vector<TensorToWrite> tensors;
  tensors.reserve(layout.tensors.size());
  for (const TrainableTensor& tensor : layout.tensors) {
    const std::span<const float> values =
        params.subspan(tensor.offset, tensor.size);
    tensors.push_back({kPrefix + tensor.name,
                       TensorDtype::kF32,
                       tensor.shape,
                       {reinterpret_cast<const uint8_t*>(values.data()),
                        values.size_bytes()}});
  }
  RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(directory, "/", kTensorsFile),
                                   tensors, {{"format", "pt"}})
                      .status());
  const Json json = FormatConfig(config, TargetModules(model, modules));
  return WriteFileAtomically(
      absl::StrCat(directory, "/", kConfigFile),
      json.dump(2, ' ', false, Json::error_handler_t::replace));
}

}  // namespace qlora::trainer
