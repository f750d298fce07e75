#include "worker/trainer/job_setup.h"

#include <malloc.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/files.h"
#include "common/base/plural.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "worker/trainer/device.h"
#include "worker/trainer/parallel/agreement.h"

namespace qlora::trainer {
namespace {

constexpr char kConfig[] = "config.json";

absl::Status ResolvePaths(const v1::TrainerTask& task,
                          std::vector<DataFile>& files) {
  for (DataFile& file : files) {
    ASSIGN_OR_RETURN(file.path, InputPath(task, file.name));
  }
  return absl::OkStatus();
}

bool NeedsTokenizer(const DataOptions& options) {
  const auto needs = [](const DataFile& file) {
    return file.format != DataFormat::kTokens;
  };
  return std::ranges::any_of(options.train, needs) ||
         std::ranges::any_of(options.eval, needs);
}

// The template's text: of a delivered file, or as it stands in the job file.
absl::StatusOr<std::string> ChatTemplateText(const v1::TrainerTask& task,
                                             const JobSpec& spec) {
  const std::string& text = spec.data.chat_template;
  for (const v1::LocalInput& input : task.inputs()) {
    if (!text.empty() && input.name() == text) return ReadFile(input.path());
  }
  return text;
}

void HashInts(Sha256& hash, const std::vector<int32_t>& values) {
  hash.Update({reinterpret_cast<const char*>(values.data()),
               values.size() * sizeof(int32_t)});
}

// config.json and the weight files of a model, by name, sorted.
std::vector<std::string> BaseFiles(const std::string& directory,
                                   bool with_weights) {
  std::vector<std::string> names = {kConfig};
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(directory, error)) {
    if (with_weights && entry.path().extension() == ".safetensors") {
      names.push_back(entry.path().filename());
    }
  }
  std::ranges::sort(names);
  return names;
}

// Size, safetensors header, and samples spread over the rest.
absl::Status HashSketch(const std::string& path, Sha256& hash) {
  constexpr int64_t kLargestHeader = 100'000'000;
  constexpr int64_t kSamples = 64;
  constexpr int64_t kSampleBytes = 4096;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t size = file.tellg();
  std::string bytes;
  const auto add = [&](int64_t begin, int64_t count) {
    bytes.resize(std::clamp<int64_t>(size - begin, 0, count));
    file.seekg(begin);
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    hash.Update(bytes);
  };
  hash.Update(absl::StrCat(size, "\n"));
  add(0, sizeof(uint64_t));
  uint64_t header = 0;
  if (bytes.size() == sizeof(header)) {
    std::memcpy(&header, bytes.data(), sizeof(header));
  }
  add(sizeof(header),
      static_cast<int64_t>(std::min<uint64_t>(header, kLargestHeader)));
  const int64_t last = std::max<int64_t>(0, size - kSampleBytes);
  for (int64_t i = 0; i < kSamples; ++i) {
    add(last / (kSamples - 1) * i + last % (kSamples - 1), kSampleBytes);
  }
  if (file) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(path, " cannot be read"));
}

}  // namespace

absl::StatusOr<JobSpec> ReadJobSpec(const v1::TrainerTask& task) {
  ParsedJob job = ParseJobFile(task.job_file());
  RETURN_IF_ERROR(SpecErrorsToStatus(job.errors, "job file"));
  return std::move(job.spec);
}

absl::StatusOr<std::string> InputPath(const v1::TrainerTask& task,
                                      const std::string& name) {
  for (const v1::LocalInput& input : task.inputs()) {
    if (input.name() == name) return input.path();
  }
  if (name.starts_with('/')) return name;
  return absl::NotFoundError(
      absl::StrCat("\"", name,
                   "\", which the job file names, was not uploaded with the "
                   "job; is the path relative to the job file right?"));
}

absl::StatusOr<std::optional<Adapter>> OpenInitAdapter(
    const v1::TrainerTask& task, const ModelDescription& model, JobSpec& spec) {
  if (spec.lora.init_adapter.empty()) return std::nullopt;
  ASSIGN_OR_RETURN(const std::string directory,
                   InputPath(task, spec.lora.init_adapter));
  ASSIGN_OR_RETURN(Adapter adapter, OpenAdapter(directory));
  RETURN_IF_ERROR(AdoptAdapter(adapter, model, spec.lora));
  return adapter;
}

MemoryPlanInput PlanInput(const v1::TrainerTask& task, const JobSpec& spec,
                          const ModelDescription& model,
                          const LoadedData& data) {
  return {.model = &model,
          .spec = &spec,
          .world_size = std::max(1, task.world_size()),
          .budget = task.memory_bytes(),
          .fast_bfloat16 = HasFastBfloat16(),
          .threads = std::max(1, task.threads()),
          .data_bytes = data.memory_bytes(),
          .evaluation = task.mode() == v1::TRAINER_MODE_EVAL,
          .micro_batch_halvings = task.micro_batch_halvings()};
}

void ApplyPlan(const MemoryPlan& plan, const JobSpec& spec,
               ModelOptions& options) {
  options.compute_dtype = plan.compute_dtype;
  options.layers = plan.layers;
  options.max_tokens = int64_t{plan.micro_batch_size} * spec.data.max_seq_len;
}

absl::StatusOr<ModelOptions> MakeModelOptions(const JobSpec& spec,
                                              const ModelDescription& model) {
  ModelOptions options;
  options.method = spec.method;
  if (spec.method == Method::kFull) return options;
  const AdapterConfig config = AdapterConfigOf(spec);
  options.lora.rank = config.rank;
  options.lora.scale = config.scale();
  ASSIGN_OR_RETURN(options.lora.modules,
                   MatchTargetModules(model, spec.lora.target_modules));
  options.lora.dropout = static_cast<float>(spec.lora.dropout);
  return options;
}

absl::StatusOr<text::ModelText> LoadJobText(const v1::TrainerTask& task,
                                            const JobSpec& spec) {
  ASSIGN_OR_RETURN(const std::string chat_template,
                   ChatTemplateText(task, spec));
  return text::LoadModelText(task.model_directory(), chat_template);
}

absl::StatusOr<LoadedData> LoadJobData(const v1::TrainerTask& task,
                                       const JobSpec& spec,
                                       const ModelDescription& model) {
  DataOptions options = DataOptionsFromSpec(spec);
  RETURN_IF_ERROR(ResolvePaths(task, options.train));
  RETURN_IF_ERROR(ResolvePaths(task, options.eval));
  options.vocab_size = model.vocab_size;
  options.now = task.has_job_create_time()
                    ? absl::FromUnixSeconds(task.job_create_time().seconds())
                    : absl::Now();
  options.threads = std::max(1, task.threads());
  options.cache_directory = task.token_cache_directory();
  if (!NeedsTokenizer(options)) return LoadData(options, nullptr);
  ASSIGN_OR_RETURN(const text::ModelText text, LoadJobText(task, spec));
  return LoadData(options, &text);
}

absl::StatusOr<LoadedData> LoadJobDataTogether(const v1::TrainerTask& task,
                                               const JobSpec& spec,
                                               const ModelDescription& model,
                                               Communicator& communicator) {
  communicator.SetTimeout(absl::Hours(24));
  absl::StatusOr<LoadedData> data = absl::UnknownError("not loaded");
  for (const bool turn : {true, false}) {
    absl::Status status;
    if ((communicator.rank() == 0) == turn) {
      data = LoadJobData(task, spec, model);
      status = data.status();
    }
    RETURN_IF_ERROR(AgreeOn(communicator, status));
  }
  // What the tokenizer took would count beside the model.
  malloc_trim(0);
  return data;
}

std::vector<std::string> JobWarnings(const JobSpec& spec,
                                     const ModelDescription& model,
                                     const LoadedData& data) {
  // Positions begin anew with each document of a packed row.
  const int64_t longest = std::max(data.train.stats().longest_document,
                                   data.eval.stats().longest_document);
  if (std::min<int64_t>(spec.data.max_seq_len, longest) <=
      model.context_length) {
    return {};
  }
  return {absl::StrCat(
      "data.max_seq_len is ", spec.data.max_seq_len,
      ", but the base model was made for ", model.context_length,
      " positions (max_position_embeddings in config.json, with its rope "
      "scaling); the longest document has ",
      Plural(longest, "token"), ". Set data.max_seq_len to ",
      model.context_length, " or less, or take a model with a longer context")};
}

std::string DatasetSha256(const Dataset& data) {
  Sha256 hash;
  for (int64_t i = 0; i < data.size(); ++i) {
    const Row row = data.row(i);
    HashInts(hash, row.document_lengths);
    HashInts(hash, row.tokens);
    HashInts(hash, row.labels);
  }
  return hash.HexDigest();
}

absl::StatusOr<std::string> BaseSha256(const std::string& directory,
                                       bool with_weights) {
  Sha256 hash;
  for (const std::string& name : BaseFiles(directory, with_weights)) {
    ASSIGN_OR_RETURN(const std::string digest,
                     Sha256OfFile(absl::StrCat(directory, "/", name)));
    hash.Update(absl::StrCat(digest, "  ", name, "\n"));
  }
  return hash.HexDigest();
}

absl::StatusOr<std::string> BaseSketch(const std::string& directory,
                                       bool with_weights) {
  Sha256 hash;
  for (const std::string& name : BaseFiles(directory, with_weights)) {
    const std::string path = absl::StrCat(directory, "/", name);
    hash.Update(absl::StrCat(name, "\n"));
    if (name == kConfig) {
      ASSIGN_OR_RETURN(const std::string config, ReadFile(path));
      hash.Update(config);
    } else {
      RETURN_IF_ERROR(HashSketch(path, hash));
    }
  }
  return hash.HexDigest();
}

int64_t WeightBytes(const std::string& directory) {
  int64_t bytes = 0;
  for (const std::string& name : BaseFiles(directory, /*with_weights=*/true)) {
    std::error_code error;
    const auto size =
        std::filesystem::file_size(absl::StrCat(directory, "/", name), error);
    if (!error) bytes += static_cast<int64_t>(size);
  }
  return bytes;
}

std::string_view ComputeDtypeName(ComputeDtype dtype) {
  return dtype == ComputeDtype::kBfloat16 ? "bfloat16" : "float32";
}

}  // namespace qlora::trainer
