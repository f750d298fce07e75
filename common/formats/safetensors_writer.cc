#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/formats/safetensors.h"
#include "common/formats/safetensors_header.h"

namespace qlora {
namespace {

// Consecutive tensors, each group at most max_bytes unless it is one tensor.
std::vector<std::vector<TensorToWrite>> CutIntoShards(
    const std::vector<TensorToWrite>& tensors, int64_t max_bytes) {
  std::vector<std::vector<TensorToWrite>> shards(1);
  int64_t bytes = 0;
  for (const TensorToWrite& tensor : tensors) {
    const auto size = static_cast<int64_t>(tensor.data.size());
    if (!shards.back().empty() && size > max_bytes - bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(tensor);
    bytes += size;
  }
  return shards;
}

}  // namespace

absl::StatusOr<std::string> WriteSafetensors(
    const std::string& path, const std::vector<TensorToWrite>& tensors,
    const std::map<std::string, std::string>& metadata) {
  std::vector<TensorToWrite> ordered = tensors;
  std::sort(ordered.begin(), ordered.end(),
            [](const TensorToWrite& a, const TensorToWrite& b) {
              return std::tie(b.dtype, a.name) < std::tie(a.dtype, b.name);
            });
  absl::StatusOr<std::string> header =
      formats_internal::FormatHeader(ordered, metadata);
  if (!header.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", header.status().message()));
  }
  auto size = static_cast<int64_t>(header->size());
  for (const TensorToWrite& tensor : ordered) {
    size += static_cast<int64_t>(tensor.data.size());
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<FileWriter> writer,
                   FileWriter::Create(path, size));
  RETURN_IF_ERROR(writer->Append(*header));
  for (const TensorToWrite& tensor : ordered) {
    RETURN_IF_ERROR(
        writer->Append({reinterpret_cast<const char*>(tensor.data.data()),
                        tensor.data.size()}));
  }
  return writer->Commit();
}

absl::StatusOr<std::vector<std::string>> WriteSafetensorsModel(
    const std::string& directory, const std::vector<TensorToWrite>& tensors,
    const std::map<std::string, std::string>& metadata,
    int64_t max_shard_bytes) {
  const std::vector<std::vector<TensorToWrite>> shards =
      CutIntoShards(tensors, max_shard_bytes);
  std::vector<std::string> files;
  nlohmann::json weight_map = nlohmann::json::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    files.push_back(shards.size() == 1
                        ? "model.safetensors"
                        : absl::StrFormat("model-%05d-of-%05d.safetensors",
                                          i + 1, shards.size()));
    RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(directory, "/", files.back()),
                                     shards[i], metadata)
                        .status());
    for (const TensorToWrite& tensor : shards[i]) {
      weight_map[tensor.name] = files.back();
      total += static_cast<int64_t>(tensor.data.size());
    }
  }
  if (shards.size() == 1) return files;
  const nlohmann::json index = {{"metadata", {{"total_size", total}}},
                                {"weight_map", std::move(weight_map)}};
  files.push_back("model.safetensors.index.json");
  RETURN_IF_ERROR(WriteFileAtomically(
      absl::StrCat(directory, "/", files.back()), index.dump(2) + "\n"));
  return files;
}

}  // namespace qlora
