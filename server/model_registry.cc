#include "server/model_registry.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_description.h"
#include "common/spec/model_files.h"
#include "server/lexical_path.h"

namespace qlora::server {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
// What the reader of sharded models takes.
constexpr size_t kMaxIndexBytes = 32 << 20;

void AddTensors(const SafetensorsReader& reader, qlora::v1::Model& model) {
  for (const TensorInfo& tensor : reader.tensors()) {
    model.set_parameters(model.parameters() + tensor.num_elements());
    model.set_size_bytes(model.size_bytes() + tensor.size_bytes);
  }
}

// What was read of a model, wherever it lies.
struct ModelTexts {
  std::string config;
  // Empty if there is none.
  std::string generation_config;
  std::string tokenizer;
};

// read(name, max_bytes) gives a file's content, or NotFound.
template <typename Read>
absl::StatusOr<ModelTexts> ReadTexts(Read read) {
  ModelTexts texts;
  ASSIGN_OR_RETURN(texts.config, read("config.json", kMaxJsonBytes));
  const auto read_optional = [&](const char* name, size_t max_bytes,
                                 std::string* text) {
    absl::StatusOr<std::string> content = read(name, max_bytes);
    if (content.ok()) {
      *text = *std::move(content);
      return absl::OkStatus();
    }
    return absl::IsNotFound(content.status()) ? absl::OkStatus()
                                              : content.status();
  };
  RETURN_IF_ERROR(read_optional("generation_config.json", kMaxJsonBytes,
                                &texts.generation_config));
  RETURN_IF_ERROR(
      read_optional("tokenizer.json", kMaxTokenizerBytes, &texts.tokenizer));
  return texts;
}

// Enters what the texts and tensors say, which must fit each other.
absl::Status Describe(const ModelTexts& texts, const FindTensor& find,
                      qlora::v1::Model& model) {
  ASSIGN_OR_RETURN(const ModelDescription description,
                   ParseModelConfig(texts.config, texts.generation_config));
  model.set_architecture(description.architecture);
  model.set_config_json(texts.config);
  RETURN_IF_ERROR(CheckModelTensors(description, find));
  if (texts.tokenizer.empty()) return absl::OkStatus();
  return CheckTokenizer(texts.tokenizer, description);
}

absl::Status InspectDirectory(const std::string& directory,
                              const Admission& admission,
                              qlora::v1::Model& model) {
  RETURN_IF_ERROR(admission.CheckDirectory(directory));
  model.set_directory(directory);
  ASSIGN_OR_RETURN(const ModelTexts texts,
                   ReadTexts([&](const char* name, size_t max_bytes) {
                     return ReadFile(absl::StrCat(directory, "/", name),
                                     max_bytes);
                   }));
  ASSIGN_OR_RETURN(const auto reader, SafetensorsReader::OpenModel(directory));
  AddTensors(*reader, model);
  return Describe(
      texts, [&](const std::string& name) { return reader->Find(name); },
      model);
}

// Shards that the index names.
absl::StatusOr<std::set<std::string>> ShardsOf(const std::string& index) {
  ASSIGN_OR_RETURN(const nlohmann::json json,
                   ParseJsonObject(index, kIndex, kMaxIndexBytes));
  if (!json.contains("weight_map") || !json["weight_map"].is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kIndex, " has no weight_map"));
  }
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : json["weight_map"].items()) {
    if (!shard.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(kIndex, ": the shard of ", tensor, " is no text"));
    }
    shards.insert(shard.get<std::string>());
  }
  return shards;
}

absl::StatusOr<std::set<std::string>> ShardsAmong(
    const qlora::v1::ImportModelRequest& request, const Admission& admission) {
  const auto index =
      admission.ReadUploaded(request.files(), kIndex, kMaxIndexBytes);
  if (absl::IsNotFound(index.status())) return std::set<std::string>{kSingle};
  RETURN_IF_ERROR(index.status());
  return ShardsOf(*index);
}

// The uploaded shard of that name; errors name it so, since where it lies here
// means nothing to the one who uploaded it.
absl::StatusOr<std::unique_ptr<SafetensorsReader>> OpenShard(
    const qlora::v1::ImportModelRequest& request, const std::string& name,
    ArtifactStore& artifacts) {
  for (const auto& file : request.files()) {
    if (file.path() != name) continue;
    ASSIGN_OR_RETURN(const std::string path, artifacts.PathOf(file.sha256()));
    auto reader = SafetensorsReader::Open(path);
    if (reader.ok()) return reader;
    return absl::InvalidArgumentError(
        absl::StrReplaceAll(reader.status().message(), {{path, name}}));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the model has no ", name,
                   name == kSingle ? "" : ", which its index names"));
}

absl::Status InspectFiles(const qlora::v1::ImportModelRequest& request,
                          const Admission& admission, ArtifactStore& artifacts,
                          qlora::v1::Model& model) {
  RETURN_IF_ERROR(admission.CheckUploaded(request.files()));
  *model.mutable_files() = request.files();
  ASSIGN_OR_RETURN(const ModelTexts texts,
                   ReadTexts([&](const char* name, size_t max_bytes) {
                     return admission.ReadUploaded(request.files(), name,
                                                   max_bytes);
                   }));
  ASSIGN_OR_RETURN(const std::set<std::string> shards,
                   ShardsAmong(request, admission));
  std::vector<std::unique_ptr<SafetensorsReader>> readers;
  for (const std::string& shard : shards) {
    ASSIGN_OR_RETURN(readers.emplace_back(),
                     OpenShard(request, shard, artifacts));
    AddTensors(*readers.back(), model);
  }
  const auto find = [&](const std::string& name) -> const TensorInfo* {
    for (const auto& reader : readers) {
      if (const TensorInfo* info = reader->Find(name)) return info;
    }
    return nullptr;
  };
  return Describe(texts, find, model);
}

}  // namespace

absl::Status CheckRegistryName(const std::string& name) {
  const auto first = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
  };
  const auto other = [&](char c) {
    return first(c) || c == '.' || c == '_' || c == '-';
  };
  if (name.empty() || name.size() > 63 || !first(name.front()) ||
      !std::all_of(name.begin(), name.end(), other)) {
    return absl::InvalidArgumentError(
        absl::StrCat("name \"", name,
                     "\": use 1 to 63 of a-z, 0-9, '.', '_', '-', beginning "
                     "with a letter or digit"));
  }
  return absl::OkStatus();
}

absl::StatusOr<qlora::v1::Model> InspectModel(
    const qlora::v1::ImportModelRequest& request, const Admission& admission,
    ArtifactStore& artifacts) {
  RETURN_IF_ERROR(CheckRegistryName(request.name()));
  if (request.directory().empty() == request.files().empty()) {
    return absl::InvalidArgumentError(
        "give either a directory or uploaded files");
  }
  qlora::v1::Model model;
  model.set_name(request.name());
  const absl::Status status =
      request.files().empty()
          ? InspectDirectory(LexicalPath(request.directory()), admission, model)
          : InspectFiles(request, admission, artifacts, model);
  if (absl::IsNotFound(status) || absl::IsUnimplemented(status)) {
    return absl::InvalidArgumentError(status.message());
  }
  RETURN_IF_ERROR(status);
  if (model.ByteSizeLong() > kMaxJobBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "config.json and the names of the files take ", model.ByteSizeLong(),
        " bytes; at most ", kMaxJobBytes, " can be sent to a worker"));
  }
  return model;
}

}  // namespace qlora::server
