#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/data_file.h"
#include "client/verbs.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/spec/job_spec.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

constexpr char kTemplate[] =
    R"(# A qlorad job. `qloractl explain` lists every key, `qloractl explain KEY` tells
# about one; what is left out has its default.
apiVersion: qlora/v1
name: NAME

# A directory in Hugging Face form (config.json, safetensors, tokenizer.json)
# below a --model-root of `qloractl local start`, absolute or relative to this
# file; or a name that `qloractl model import` gave.
model: {base: BASE}

# qlora: adapters on a quantized base. lora: on the base as it is. full: all
# weights.
method: qlora
lora: {rank: 16, alpha: 32, dropout: 0.05}

data:
  # One JSON object a line: {"messages": [{"role": "user", "content": "..."},
  # {"role": "assistant", "content": "..."}]}. Other formats: prompt_completion,
  # alpaca, text, tokens. A file beside this one is uploaded by `submit`.
  train: [{path: DATA, format: FORMAT}]
  # Kept apart to measure the loss on what was not trained.
  eval_fraction: 0.05
  max_seq_len: 1024
  # Only what the assistant says is learned.
  loss_on: assistant

train:
  epochs: 3
  global_batch_size: 16
  learning_rate: 2e-4
  lr_scheduler: cosine
  warmup_ratio: 0.03

eval: {every: 50 steps}
checkpoint: {every: 100 steps}

# Ranks on one node; the base is sharded over them.
resources: {devices_per_node: 1}
)";

// As a scalar within a flow mapping.
std::string YamlScalar(const std::string& text) {
  const bool plain =
      !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
        return absl::ascii_isalnum(c) || absl::StrContains("./_-", c);
      });
  return plain ? text : nlohmann::json(text).dump();
}

std::string JobFile(const InitOptions& options) {
  std::error_code error;
  std::string model = options.model, data = options.data;
  if (fs::is_directory(model, error)) model = fs::canonical(model).string();
  if (fs::exists(data, error)) {
    // Beside the job file as it is called, elsewhere by its whole path.
    const fs::path whole = fs::absolute(data).lexically_normal();
    const bool beside =
        whole.parent_path() ==
        fs::absolute(options.file).lexically_normal().parent_path();
    data = beside ? whole.filename().string() : whole.string();
  }
  return absl::StrReplaceAll(
      kTemplate, {{"NAME", YamlScalar(options.name)},
                  {"BASE", model.empty() ? "./base-model" : YamlScalar(model)},
                  {"DATA", data.empty() ? "train.jsonl" : YamlScalar(data)},
                  {"FORMAT", absl::EndsWith(data, ".txt") ? "text" : "chat"}});
}

// The same with --force.
std::string ForceCommand(const InitOptions& options) {
  std::string command = "qloractl init --force";
  const auto add = [&](const char* flag, const std::string& value) {
    absl::StrAppend(&command, " ", flag, " ", ShellWord(value));
  };
  if (options.name != InitOptions().name) add("--name", options.name);
  if (!options.model.empty()) add("--model", options.model);
  if (!options.data.empty()) add("--data", options.data);
  return absl::StrCat(command, " ", ShellWord(options.file));
}

absl::Status CheckTarget(const InitOptions& options) {
  const std::string what = absl::StrCat("cannot write ", options.file);
  std::error_code error;
  if (options.file.empty() || fs::is_directory(options.file, error)) {
    return WithWhat(UsageError("name a file, for instance job.yaml"), what);
  }
  if (!fs::exists(options.file, error) || options.force) {
    return absl::OkStatus();
  }
  return WithHint(WithWhat(absl::AlreadyExistsError("it exists"),
                           absl::StrCat("will not overwrite ", options.file)),
                  ForceCommand(options));
}

// What is meant as a path must be there; a plain name may be a registered one.
absl::Status CheckSources(const InitOptions& options) {
  std::error_code error;
  const fs::path model = options.model, data = options.data;
  if (!model.empty() && !fs::is_directory(model, error) &&
      (model.has_parent_path() || fs::exists(model, error))) {
    return WithWhat(absl::NotFoundError(absl::StrCat("--model ", options.model,
                                                     ": no such directory")),
                    absl::StrCat("cannot write ", options.file));
  }
  if (data.empty() || absl::StartsWith(options.data, "dataset:")) {
    return absl::OkStatus();
  }
  const absl::Status fine =
      fs::exists(data, error)
          ? CheckDataFile(options.data, options.data)
          : absl::NotFoundError(
                absl::StrCat("--data ", options.data,
                             ": no such file (a pushed one is dataset:NAME)"));
  return WithWhat(fine, absl::StrCat("cannot write ", options.file));
}

}  // namespace

absl::Status Init(Session& session, const InitOptions& options) {
  RETURN_IF_ERROR(CheckTarget(options));
  RETURN_IF_ERROR(CheckSources(options));
  const std::string yaml = JobFile(options);
  const ParsedJob parsed = ParseJobFile(yaml);
  if (!parsed.errors.empty()) {
    const SpecError& error = parsed.errors[0];
    return WithWhat(UsageError(absl::StrCat(error.path, ": ", error.message)),
                    "this would be no valid job file");
  }
  const absl::Status written = WriteFileAtomically(options.file, yaml);
  if (!written.ok()) {
    return WithWhat(written, absl::StrCat("cannot write ", options.file));
  }
  std::ostream& out = *session.output.out;
  out << "wrote " << options.file << "\n";
  if (options.model.empty() || options.data.empty()) {
    out << "fill in model.base and data.train there\n";
  }
  out << "next: qloractl plan -f " << options.file << "\n";
  return absl::OkStatus();
}

}  // namespace qlora::client
