#include "worker/trainer/checkpoint/job_output.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/files.h"
#include "common/base/plural.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"
#include "common/formats/safetensors.h"
#include "common/formats/yaml_tree.h"
#include "worker/trainer/checkpoint/adapter.h"

namespace qlora::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr char kChecksums[] = "SHA256SUMS";
constexpr char kEvalRecord[] = "eval.json";

// What makes a model directory usable beside config and weights.
constexpr std::array<const char*, 9> kCopiedFiles = {"generation_config.json",
                                                     "tokenizer.json",
                                                     "tokenizer_config.json",
                                                     "special_tokens_map.json",
                                                     "added_tokens.json",
                                                     "tokenizer.model",
                                                     "vocab.json",
                                                     "merges.txt",
                                                     "chat_template.jinja"};

// The front matter that model hubs read.
std::string FrontMatter(const JobSpec& spec) {
  YamlNode root;
  root.kind = YamlNode::Kind::kMap;
  const auto add = [&](std::string key, YamlNode value) {
    root.entries.push_back({std::move(key), 0, 0, std::move(value)});
  };
  const bool full = spec.method == Method::kFull;
  YamlNode tags;
  tags.kind = YamlNode::Kind::kSequence;
  tags.items.push_back(YamlNode::Scalar(std::string(MethodName(spec.method))));
  add("base_model", YamlNode::Scalar(spec.model.base, true));
  add("library_name", YamlNode::Scalar(full ? "transformers" : "peft"));
  add("pipeline_tag", YamlNode::Scalar("text-generation"));
  add("tags", std::move(tags));
  return WriteYaml(root);
}

std::string Row(std::string_view name, const std::string& value) {
  return absl::StrCat("| ", std::string(name), " | ", value, " |\n");
}

std::string ModelCard(const JobOutput& output) {
  const JobSpec& spec = *output.spec;
  std::string text = absl::StrCat(
      "---\n", FrontMatter(spec), "---\n\n# ", spec.output_name(), "\n\n",
      spec.method == Method::kFull ? "A model" : "A LoRA adapter",
      " trained by qlorad on `", spec.model.base, "`.\n\n| | |\n|---|---|\n");
  text += Row("job", absl::StrCat(spec.name, " (", output.job_id, ")"));
  text += Row("method", std::string(MethodName(spec.method)));
  if (spec.method != Method::kFull) {
    text += Row("rank, alpha, dropout",
                absl::StrCat(spec.lora.rank, ", ", spec.lora.alpha, ", ",
                             spec.lora.dropout));
  }
  text += Row("records", output.records);
  text += Row("steps", absl::StrCat(output.steps));
  text += Row("trained tokens", absl::StrCat(output.tokens_trained));
  text += Row("learning rate", absl::StrCat(spec.train.learning_rate));
  text += Row("seed", absl::StrCat(spec.train.seed));
  text += Row("ranks, compute type",
              absl::StrCat(output.world_size, ", ", output.eval.compute_dtype));
  if (output.final_loss.has_value()) {
    text += Row("last training loss", absl::StrCat(*output.final_loss));
  }
  text += Row(output.eval.data == "eval" ? "evaluation loss"
                                         : "loss of the first batch's rows",
              absl::StrCat(output.eval.loss, " over ",
                           Plural(output.eval.tokens, "token")));
  // Zero would have no unit.
  const absl::Duration unit = output.train_time < absl::Seconds(1)
                                  ? absl::Milliseconds(1)
                                  : absl::Seconds(1);
  text +=
      Row("training time", absl::FormatDuration(std::max(
                               unit, absl::Trunc(output.train_time, unit))));
  text +=
      Row("finished", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", output.finish_time,
                                       absl::UTCTimeZone()));
  absl::StrAppend(&text, "\nData:\n\n");
  for (const DataSource& source : spec.data.train) {
    absl::StrAppend(&text, "- `", source.path, "`\n");
  }
  absl::StrAppend(&text,
                  "\n`job.yaml` has every setting, `metrics.jsonl` the "
                  "logged steps, `eval.json` what\n`qloractl adapter verify` "
                  "measures again.\n");
  return text;
}

// config.json of the base, saying the type of the weights that are written.
absl::Status WriteModelConfig(const std::string& base_directory,
                              const std::string& directory) {
  const std::string path = base_directory + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  Json config = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is no object"));
  }
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = "float32";
  return WriteFileAtomically(
      directory + "/config.json",
      config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

absl::Status WriteModel(const std::string& directory, const JobOutput& output) {
  std::vector<TensorToWrite> tensors;
  tensors.reserve(output.layout->tensors.size());
  for (const TrainableTensor& tensor : output.layout->tensors) {
    const std::span<const float> values =
        output.params.subspan(tensor.offset, tensor.size);
    tensors.push_back({tensor.name,
                       TensorDtype::kF32,
                       tensor.shape,
                       {reinterpret_cast<const uint8_t*>(values.data()),
                        values.size_bytes()}});
  }
  RETURN_IF_ERROR(
      WriteSafetensorsModel(directory, tensors, {{"format", "pt"}}).status());
  RETURN_IF_ERROR(WriteModelConfig(output.base_directory, directory));
  for (const char* file : kCopiedFiles) {
    const std::string from = absl::StrCat(output.base_directory, "/", file);
    std::error_code error;
    if (!fs::exists(from, error)) continue;
    RETURN_IF_ERROR(
        CopyFileSynced(from, absl::StrCat(directory, "/", file)).status());
  }
  return absl::OkStatus();
}

absl::Status WriteChecksums(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::vector<std::string> files,
                   ListFilesRecursively(directory));
  std::string text;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(const std::string sha256,
                     Sha256OfFile(absl::StrCat(directory, "/", file)));
    absl::StrAppend(&text, sha256, "  ", file, "\n");
  }
  return WriteFileAtomically(absl::StrCat(directory, "/", kChecksums), text);
}

absl::Status WriteFiles(const std::string& directory, const JobOutput& output) {
  const auto write = [&](const char* file, const std::string& text) {
    return WriteFileAtomically(absl::StrCat(directory, "/", file), text);
  };
  if (output.spec->method == Method::kFull) {
    RETURN_IF_ERROR(WriteModel(directory, output));
  } else {
    RETURN_IF_ERROR(WriteAdapter(directory, AdapterConfigOf(*output.spec),
                                 *output.model, output.modules, *output.layout,
                                 output.params));
  }
  const Json eval = {{"loss", output.eval.loss},
                     {"tokens", output.eval.tokens},
                     {"data", output.eval.data},
                     {"compute_dtype", output.eval.compute_dtype}};
  RETURN_IF_ERROR(write(kEvalRecord, eval.dump(2) + "\n"));
  RETURN_IF_ERROR(write("job.yaml", ResolvedJobFile(*output.spec)));
  RETURN_IF_ERROR(write("README.md", ModelCard(output)));
  RETURN_IF_ERROR(CopyFileSynced(output.metrics_path,
                                 absl::StrCat(directory, "/metrics.jsonl"))
                      .status());
  return WriteChecksums(directory);
}

}  // namespace

absl::Status WriteJobOutput(const std::string& directory,
                            const JobOutput& output) {
  if (static_cast<int64_t>(output.params.size()) != output.layout->total) {
    return absl::InvalidArgumentError(
        absl::StrCat("a buffer of ", output.params.size(), " for a layout of ",
                     output.layout->total));
  }
  const fs::path parent = fs::path(directory).parent_path();
  if (!parent.empty()) RETURN_IF_ERROR(CreateDirectories(parent.string()));
  ASSIGN_OR_RETURN(const std::unique_ptr<DirectoryWriter> writer,
                   DirectoryWriter::Create(directory));
  RETURN_IF_ERROR(WriteFiles(writer->directory(), output));
  return writer->Commit();
}

absl::StatusOr<EvalRecord> ReadEvalRecord(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kEvalRecord);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(text, path));
  absl::Status status;
  JsonFields fields(json, path + ": ", status);
  EvalRecord record;
  record.loss = fields.Number("loss", 0, std::numeric_limits<double>::max());
  record.tokens =
      fields.Integer("tokens", 0, std::numeric_limits<int64_t>::max());
  record.data = fields.String("data");
  record.compute_dtype = fields.String("compute_dtype");
  if (record.compute_dtype != "float32" && record.compute_dtype != "bfloat16") {
    fields.Fail("compute_dtype", "must be float32 or bfloat16");
  }
  RETURN_IF_ERROR(status);
  return record;
}

absl::Status VerifyChecksums(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kChecksums);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  if (text.empty()) {
    return absl::DataLossError(absl::StrCat(path, ": names no file"));
  }
  for (const absl::string_view view :
       absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::string line(view);
    const std::string sha256 = line.substr(0, 64);
    const std::string file = line.size() > 66 ? line.substr(66) : "";
    if (!IsSha256Hex(sha256) || line.compare(64, 2, "  ") != 0 ||
        !IsSafeRelativePath(file)) {
      return absl::DataLossError(
          absl::StrCat(path, ": has a malformed line: ", line.substr(0, 200)));
    }
    const absl::StatusOr<std::string> actual =
        Sha256OfFile(absl::StrCat(directory, "/", file));
    if (actual.ok() && *actual == sha256) continue;
    return absl::DataLossError(absl::StrCat(
        directory, "/", file,
        actual.ok() ? ": does not have the digest of SHA256SUMS"
                    : ": is named in SHA256SUMS but cannot be read"));
  }
  return absl::OkStatus();
}

}  // namespace qlora::trainer
