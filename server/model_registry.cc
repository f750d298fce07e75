#include "server/model_registry.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_description.h"

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

absl::Status Describe(const std::string& config_json, qlora::v1::Model& model) {
  ASSIGN_OR_RETURN(const ModelDescription description,
                   ParseModelConfig(config_json));
  model.set_architecture(description.architecture);
  model.set_config_json(config_json);
  return absl::OkStatus();
}

absl::Status InspectDirectory(const std::string& directory,
                              const Admission& admission,
                              qlora::v1::Model& model) {
  RETURN_IF_ERROR(admission.CheckDirectory(directory));
  model.set_directory(directory);
  ASSIGN_OR_RETURN(
      const std::string config,
      ReadFile(absl::StrCat(directory, "/config.json"), kMaxJsonBytes));
  RETURN_IF_ERROR(Describe(config, model));
  ASSIGN_OR_RETURN(const auto reader, SafetensorsReader::OpenModel(directory));
  AddTensors(*reader, model);
  return absl::OkStatus();
}

// Shards that the index names.
absl::StatusOr<std::set<std::string>> ShardsOf(const std::string& index) {
  const auto json = nlohmann::json::parse(index, nullptr, false);
  if (!json.is_object() || !json.contains("weight_map") ||
      !json["weight_map"].is_object()) {
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

absl::Status InspectFiles(const qlora::v1::ImportModelRequest& request,
                          const Admission& admission, ArtifactStore& artifacts,
                          qlora::v1::Model& model) {
  RETURN_IF_ERROR(admission.CheckUploaded(request.files()));
  *model.mutable_files() = request.files();
  const auto path_of =
      [&](const std::string& name) -> absl::StatusOr<std::string> {
    for (const auto& file : request.files()) {
      if (file.path() == name) return artifacts.PathOf(file.sha256());
    }
    return absl::InvalidArgumentError(absl::StrCat("the model has no ", name));
  };
  ASSIGN_OR_RETURN(const std::string config_path, path_of("config.json"));
  ASSIGN_OR_RETURN(const std::string config,
                   ReadFile(config_path, kMaxJsonBytes));
  RETURN_IF_ERROR(Describe(config, model));
  std::set<std::string> shards = {kSingle};
  if (const auto index_path = path_of(kIndex); index_path.ok()) {
    ASSIGN_OR_RETURN(const std::string index,
                     ReadFile(*index_path, kMaxIndexBytes));
    ASSIGN_OR_RETURN(shards, ShardsOf(index));
  }
  for (const std::string& shard : shards) {
    ASSIGN_OR_RETURN(const std::string path, path_of(shard));
    const auto reader = SafetensorsReader::Open(path);
    if (!reader.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(shard, ": ", reader.status().message()));
    }
    AddTensors(**reader, model);
  }
  return absl::OkStatus();
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
          ? InspectDirectory(request.directory(), admission, model)
          : InspectFiles(request, admission, artifacts, model);
  if (absl::IsNotFound(status) || absl::IsUnimplemented(status)) {
    return absl::InvalidArgumentError(status.message());
  }
  RETURN_IF_ERROR(status);
  return model;
}

}  // namespace qlora::server
