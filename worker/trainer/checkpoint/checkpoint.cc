#include "worker/trainer/checkpoint/checkpoint.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/files.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"
#include "common/formats/safetensors.h"
#include "worker/trainer/checkpoint/curve.h"

namespace qlora::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int kFormatVersion = 1;
constexpr char kManifest[] = "manifest.json";
constexpr char kManifestDigest[] = "manifest.sha256";
constexpr char kMetrics[] = "metrics.jsonl";
constexpr std::array<const char*, 3> kTensorFiles = {
    "params.safetensors", "adam_m.safetensors", "adam_v.safetensors"};
constexpr size_t kMaxManifestBytes = 16 << 20;
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

std::string_view AsBytes(std::span<const float> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

// What a chunk is: today a whole file as it is. A delta will have another
// encoding and a parent's digest.
struct Chunk {
  std::string file;
  int64_t size = 0;
  std::string sha256;
};

absl::StatusOr<Chunk> DescribeFile(const std::string& directory,
                                   const std::string& file,
                                   std::string sha256) {
  std::error_code error;
  const auto size = fs::file_size(absl::StrCat(directory, "/", file), error);
  if (error) return ErrnoToStatus(error.value(), file);
  return Chunk{file, static_cast<int64_t>(size), std::move(sha256)};
}

absl::StatusOr<Chunk> WriteTensors(const std::string& directory,
                                   const std::string& file,
                                   const TrainableLayout& layout,
                                   std::span<const float> values) {
  if (static_cast<int64_t>(values.size()) != layout.total) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": ", values.size(), " values for a layout of ", layout.total));
  }
  std::vector<TensorToWrite> tensors;
  tensors.reserve(layout.tensors.size());
  for (const TrainableTensor& tensor : layout.tensors) {
    const std::string_view bytes =
        AsBytes(values.subspan(tensor.offset, tensor.size));
    tensors.push_back(
        {tensor.name,
         TensorDtype::kF32,
         tensor.shape,
         {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}});
  }
  ASSIGN_OR_RETURN(std::string sha256,
                   WriteSafetensors(absl::StrCat(directory, "/", file), tensors,
                                    {{"format", "pt"}}));
  return DescribeFile(directory, file, std::move(sha256));
}

Json OptionalNumber(const std::optional<double>& value) {
  return value.has_value() ? Json(*value) : Json(nullptr);
}

Json FormatManifest(const CheckpointState& state,
                    const std::vector<Chunk>& chunks) {
  Json list = Json::array();
  for (const Chunk& chunk : chunks) {
    list.push_back({{"file", chunk.file},
                    {"size", chunk.size},
                    {"sha256", chunk.sha256},
                    {"encoding", "raw"},
                    {"parent", nullptr}});
  }
  return {
      {"format_version", kFormatVersion},
      {"job", state.job_id},
      {"attempt", state.attempt},
      {"step", state.step},
      {"world_size", state.world_size},
      {"base", {{"sha256", state.base_sha256}}},
      {"dataset",
       {{"sha256", state.dataset_sha256}, {"shuffle", state.shuffle}}},
      {"cursor", {{"epoch", state.cursor.epoch}, {"row", state.cursor.row}}},
      {"rng", {{"seed", state.seed}}},
      {"optimizer", {{"type", state.optimizer}}},
      {"schedule", {{"total_steps", state.total_steps}}},
      {"loss",
       {{"tokens_trained", state.tokens_trained},
        {"tokens_total", state.tokens_total},
        {"first", OptionalNumber(state.first_loss)},
        {"last", OptionalNumber(state.last_loss)},
        {"best_eval", OptionalNumber(state.best_eval_loss)},
        {"train_seconds", state.train_seconds}}},
      {"determinism",
       {{"compute_dtype", state.compute_dtype},
        {"deterministic", state.deterministic}}},
      {"versions", state.versions},
      {"chunks", std::move(list)},
  };
}

absl::Status WriteSynced(const std::string& path, std::string_view content) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileWriter> writer,
                   FileWriter::Create(path));
  RETURN_IF_ERROR(writer->Append(content));
  return writer->Commit().status();
}

// The digest's file comes first, so that the manifest stays the last.
absl::StatusOr<std::string> WriteManifest(const std::string& directory,
                                          const Json& manifest) {
  const std::string text =
      manifest.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  const std::string digest = Sha256Hex(text);
  RETURN_IF_ERROR(WriteSynced(absl::StrCat(directory, "/", kManifestDigest),
                              absl::StrCat(digest, "  ", kManifest, "\n")));
  RETURN_IF_ERROR(WriteSynced(absl::StrCat(directory, "/", kManifest), text));
  return digest;
}

absl::Status Damaged(const std::string& directory, std::string_view file,
                     const std::string& what) {
  return absl::DataLossError(absl::StrCat(directory, "/", std::string(file),
                                          ": ", what,
                                          "; the checkpoint is damaged"));
}

absl::StatusOr<std::string> ReadPart(const std::string& directory,
                                     const char* file) {
  const std::string path = absl::StrCat(directory, "/", file);
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (error) return Damaged(directory, file, "cannot be read");
  if (size > kMaxManifestBytes) return Damaged(directory, file, "is too large");
  return ReadFile(path);
}

absl::StatusOr<Json> ReadManifest(const std::string& directory) {
  std::error_code error;
  if (!fs::exists(absl::StrCat(directory, "/", kManifest), error)) {
    return absl::NotFoundError(
        absl::StrCat(directory, ": there is no checkpoint (no manifest.json)"));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadPart(directory, kManifest));
  ASSIGN_OR_RETURN(const std::string digest,
                   ReadPart(directory, kManifestDigest));
  if (digest != absl::StrCat(Sha256Hex(text), "  ", kManifest, "\n")) {
    return Damaged(directory, kManifest,
                   "does not have the digest of manifest.sha256");
  }
  absl::StatusOr<Json> manifest = ParseJsonObject(text, kManifest, text.size());
  if (!manifest.ok()) {
    return Damaged(directory, kManifest,
                   std::string(manifest.status().message()));
  }
  const auto version = manifest->find("format_version");
  if (version == manifest->end() || *version != kFormatVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, ": the checkpoint has format version ",
                     version == manifest->end() ? "none" : ShownJson(*version),
                     "; this program reads ", kFormatVersion));
  }
  return manifest;
}

// A manifest's object field, or an empty object, which then lacks its fields.
const Json& Section(const Json& manifest, const char* name) {
  static const Json kNone = Json::object();
  const auto it = manifest.find(name);
  return it != manifest.end() && it->is_object() ? *it : kNone;
}

std::optional<double> ReadOptional(JsonFields& fields, const char* name) {
  constexpr double kMax = std::numeric_limits<double>::max();
  if (!fields.Has(name)) return std::nullopt;
  return fields.Number(name, -kMax, kMax);
}

absl::StatusOr<CheckpointState> ParseState(const Json& manifest) {
  absl::Status status;
  JsonFields top(manifest, "", status);
  JsonFields base(Section(manifest, "base"), "base.", status);
  JsonFields dataset(Section(manifest, "dataset"), "dataset.", status);
  JsonFields cursor(Section(manifest, "cursor"), "cursor.", status);
  JsonFields rng(Section(manifest, "rng"), "rng.", status);
  JsonFields optimizer(Section(manifest, "optimizer"), "optimizer.", status);
  JsonFields schedule(Section(manifest, "schedule"), "schedule.", status);
  JsonFields loss(Section(manifest, "loss"), "loss.", status);
  JsonFields mode(Section(manifest, "determinism"), "determinism.", status);
  CheckpointState state;
  state.job_id = top.String("job");
  state.attempt = static_cast<int>(top.Integer("attempt", 0, 1 << 30));
  state.step = top.Integer("step", 0, kMaxInt64);
  state.world_size = static_cast<int>(top.Integer("world_size", 1, 1 << 30));
  state.base_sha256 = base.String("sha256");
  state.dataset_sha256 = dataset.String("sha256");
  state.shuffle = dataset.Bool("shuffle");
  state.cursor.epoch = cursor.Integer("epoch", 0, kMaxInt64);
  state.cursor.row = cursor.Integer("row", 0, kMaxInt64);
  state.seed = rng.Integer("seed", 0, kMaxInt64);
  state.optimizer = optimizer.String("type");
  state.total_steps = schedule.Integer("total_steps", 0, kMaxInt64);
  state.tokens_trained = loss.Integer("tokens_trained", 0, kMaxInt64);
  state.tokens_total = loss.Integer("tokens_total", 0, kMaxInt64);
  state.first_loss = ReadOptional(loss, "first");
  state.last_loss = ReadOptional(loss, "last");
  state.best_eval_loss = ReadOptional(loss, "best_eval");
  state.train_seconds =
      loss.Number("train_seconds", 0, std::numeric_limits<double>::max());
  state.compute_dtype = mode.String("compute_dtype");
  state.deterministic = mode.Bool("deterministic");
  for (const auto& [name, version] : Section(manifest, "versions").items()) {
    if (version.is_string()) state.versions[name] = version;
  }
  RETURN_IF_ERROR(status);
  return state;
}

absl::StatusOr<Chunk> ParseChunk(const Json& json) {
  absl::Status status;
  JsonFields fields(json.is_object() ? json : Section(json, ""), "chunks[].",
                    status);
  Chunk chunk;
  chunk.file = fields.String("file");
  chunk.size = fields.Integer("size", 0, kMaxInt64);
  chunk.sha256 = fields.String("sha256");
  const std::string encoding = fields.String("encoding");
  RETURN_IF_ERROR(status);
  if (!IsSafeRelativePath(chunk.file) || !IsSha256Hex(chunk.sha256)) {
    return absl::InvalidArgumentError("a chunk's file or digest is malformed");
  }
  if (encoding != "raw" || fields.Has("parent")) {
    return absl::FailedPreconditionError(
        absl::StrCat("chunk ", chunk.file, " has encoding '", encoding,
                     "', which this program does not read"));
  }
  return chunk;
}

// Sizes of all files first, then their digests.
absl::Status VerifyChunks(const std::string& directory, const Json& manifest) {
  std::vector<Chunk> chunks;
  const auto list = manifest.find("chunks");
  if (list == manifest.end() || !list->is_array()) {
    return Damaged(directory, kManifest, "has no chunks");
  }
  for (const Json& json : *list) {
    absl::StatusOr<Chunk> chunk = ParseChunk(json);
    if (absl::IsInvalidArgument(chunk.status())) {
      return Damaged(directory, kManifest,
                     std::string(chunk.status().message()));
    }
    RETURN_IF_ERROR(chunk.status());
    std::error_code error;
    const auto size =
        fs::file_size(absl::StrCat(directory, "/", chunk->file), error);
    if (error) return Damaged(directory, chunk->file, "is missing");
    if (static_cast<int64_t>(size) != chunk->size) {
      return Damaged(
          directory, chunk->file,
          absl::StrCat("has ", size, " bytes instead of ", chunk->size));
    }
    chunks.push_back(*std::move(chunk));
  }
  for (const char* file : kTensorFiles) {
    if (std::none_of(chunks.begin(), chunks.end(),
                     [&](const Chunk& chunk) { return chunk.file == file; })) {
      return Damaged(directory, kManifest,
                     absl::StrCat("does not vouch for ", file));
    }
  }
  for (const Chunk& chunk : chunks) {
    ASSIGN_OR_RETURN(const std::string sha256,
                     Sha256OfFile(absl::StrCat(directory, "/", chunk.file)));
    if (sha256 != chunk.sha256) {
      return Damaged(directory, chunk.file,
                     "does not have the digest of the manifest");
    }
  }
  return absl::OkStatus();
}

// The same names and shapes, nothing more.
absl::Status CheckLayout(const std::string& path,
                         const SafetensorsReader& reader,
                         const TrainableLayout& layout) {
  const auto differs = [&](const std::string& name, const std::string& what) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": tensor '", name, "' ", what,
        "; the checkpoint is of another model or other lora settings"));
  };
  for (const TrainableTensor& tensor : layout.tensors) {
    const TensorInfo* info = reader.Find(tensor.name);
    if (info == nullptr) return differs(tensor.name, "is missing");
    if (info->dtype != TensorDtype::kF32 || info->shape != tensor.shape) {
      return differs(
          tensor.name,
          absl::StrCat("is ", std::string(DtypeName(info->dtype)), " [",
                       absl::StrJoin(info->shape, ", "), "], not F32 [",
                       absl::StrJoin(tensor.shape, ", "), "]"));
    }
  }
  if (reader.tensors().size() != layout.tensors.size()) {
    for (const TensorInfo& info : reader.tensors()) {
      const auto same = [&](const TrainableTensor& tensor) {
        return tensor.name == info.name;
      };
      if (std::none_of(layout.tensors.begin(), layout.tensors.end(), same)) {
        return differs(info.name, "is not one that this job trains");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBuffers(const TrainableLayout& layout,
                          const StateBuffers& buffers) {
  for (const std::span<float> buffer :
       {buffers.params, buffers.adam_m, buffers.adam_v}) {
    if (static_cast<int64_t>(buffer.size()) != layout.total) {
      return absl::InvalidArgumentError(
          absl::StrCat("a state buffer has ", buffer.size(),
                       " elements for a layout of ", layout.total));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string StateSha256(int64_t step, const ConstStateBuffers& buffers) {
  Sha256 hash;
  hash.Update({reinterpret_cast<const char*>(&step), sizeof(step)});
  hash.Update(AsBytes(buffers.params));
  hash.Update(AsBytes(buffers.adam_m));
  hash.Update(AsBytes(buffers.adam_v));
  return hash.HexDigest();
}

absl::StatusOr<StagedCheckpoint> StageCheckpoint(
    const std::string& parent, const CheckpointState& state,
    const TrainableLayout& layout, const ConstStateBuffers& buffers,
    const std::string& metrics_path) {
  RETURN_IF_ERROR(CreateDirectories(parent));
  StagedCheckpoint staged;
  staged.directory = absl::StrCat(parent, "/", state.step);
  ASSIGN_OR_RETURN(const std::unique_ptr<DirectoryWriter> writer,
                   DirectoryWriter::Create(staged.directory));
  const std::string& directory = writer->directory();
  std::vector<Chunk> chunks;
  const std::array<std::span<const float>, 3> values = {
      buffers.params, buffers.adam_m, buffers.adam_v};
  for (size_t i = 0; i < kTensorFiles.size(); ++i) {
    ASSIGN_OR_RETURN(
        chunks.emplace_back(),
        WriteTensors(directory, kTensorFiles[i], layout, values[i]));
  }
  ASSIGN_OR_RETURN(
      std::string sha256,
      CopyCurve(metrics_path, absl::StrCat(directory, "/", kMetrics)));
  ASSIGN_OR_RETURN(chunks.emplace_back(),
                   DescribeFile(directory, kMetrics, std::move(sha256)));
  ASSIGN_OR_RETURN(staged.manifest_sha256,
                   WriteManifest(directory, FormatManifest(state, chunks)));
  RETURN_IF_ERROR(writer->Commit());
  for (const Chunk& chunk : chunks) staged.size_bytes += chunk.size;
  return staged;
}

absl::StatusOr<CheckpointState> LoadCheckpoint(const std::string& directory,
                                               const TrainableLayout& layout,
                                               const StateBuffers& buffers) {
  RETURN_IF_ERROR(CheckBuffers(layout, buffers));
  ASSIGN_OR_RETURN(const Json manifest, ReadManifest(directory));
  absl::StatusOr<CheckpointState> state = ParseState(manifest);
  if (!state.ok()) {
    return Damaged(directory, kManifest, std::string(state.status().message()));
  }
  RETURN_IF_ERROR(VerifyChunks(directory, manifest));
  std::vector<std::unique_ptr<SafetensorsReader>> readers;
  for (const char* file : kTensorFiles) {
    const std::string path = absl::StrCat(directory, "/", file);
    absl::StatusOr<std::unique_ptr<SafetensorsReader>> reader =
        SafetensorsReader::Open(path);
    if (!reader.ok()) {
      return Damaged(directory, file, std::string(reader.status().message()));
    }
    RETURN_IF_ERROR(CheckLayout(path, **reader, layout));
    readers.push_back(*std::move(reader));
  }
  const std::array<std::span<float>, 3> targets = {
      buffers.params, buffers.adam_m, buffers.adam_v};
  for (size_t i = 0; i < readers.size(); ++i) {
    for (const TrainableTensor& tensor : layout.tensors) {
      RETURN_IF_ERROR(readers[i]->ReadFloat32(
          tensor.name, targets[i].subspan(tensor.offset, tensor.size)));
    }
  }
  return state;
}

}  // namespace qlora::trainer
