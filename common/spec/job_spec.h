// A job file, parsed and checked. docs/job-file.md is generated from the same
// key table as the parser (job_keys.h).
//
// Values only; copy freely. Parsing is thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace qlora {

enum class Method { kQlora, kLora, kFull };
enum class ComputeDtype { kAuto, kFloat32, kBfloat16 };
enum class DataFormat { kChat, kPromptCompletion, kAlpaca, kText, kTokens };
enum class LossOn { kAssistant, kLast, kAll };
enum class OnBadRecord { kFail, kSkip };
enum class OnTooLong { kTruncate, kSplit, kDrop };
enum class LrScheduler { kConstant, kLinear, kCosine };
enum class ActivationMemory { kAuto, kKeep, kRecompute };
enum class DeviceKind { kAny, kCpu, kCuda, kMps };

// "200", "200 steps", "0.5 epochs" or "30m"; exactly one field is set, or none
// (never).
struct Period {
  int64_t steps = 0;
  double epochs = 0;
  absl::Duration time = absl::ZeroDuration();
  bool never() const {
    return steps == 0 && epochs == 0 && time == absl::ZeroDuration();
  }
};

struct DataSource {
  // A path beside the job file, "dataset:NAME", or an absolute path under a
  // worker's model root.
  std::string path;
  DataFormat format = DataFormat::kChat;
};

// Every field is a key of the job file under the same name; defaults, units and
// meaning are in the key table.
struct JobSpec {
  std::string name;
  std::string project = "default";
  std::map<std::string, std::string> labels;

  struct Model {
    std::string base;
    // "pretrained" or "random".
    bool random_init = false;
  } model;

  Method method = Method::kQlora;

  struct Quantization {
    std::string type = "nf4";
    bool double_quant = true;
    int block_size = 64;
  } quantization;

  struct Lora {
    int rank = 16;
    double alpha = 32;
    double dropout = 0.0;
    // Empty: all-linear. Module name suffixes, as PEFT matches them.
    std::vector<std::string> target_modules;
    bool use_rslora = false;
    // Empty, or a path / "adapter:NAME" to start from.
    std::string init_adapter;
    // With init_adapter: which of lora.rank, lora.alpha, lora.target_modules
    // and lora.use_rslora the file does not state, so that they are the
    // adapter's. The fields hold defaults until the adapter has been read.
    std::set<std::string> from_adapter;
  } lora;

  struct Data {
    std::vector<DataSource> train;
    std::vector<DataSource> eval;
    double eval_fraction = 0.0;
    int max_seq_len = 2048;
    bool packing = true;
    bool shuffle = true;
    LossOn loss_on = LossOn::kAssistant;
    // Jinja text or a path beside the job file; empty: the tokenizer's.
    std::string chat_template;
    OnBadRecord on_bad_record = OnBadRecord::kFail;
    OnTooLong on_too_long = OnTooLong::kTruncate;
  } data;

  struct Train {
    double epochs = 1.0;
    // 0: by epochs.
    int64_t max_steps = 0;
    int global_batch_size = 8;
    // Rows per forward; 0: chosen by the planner.
    int micro_batch_size = 0;
    double learning_rate = 2e-4;
    LrScheduler lr_scheduler = LrScheduler::kLinear;
    double warmup_ratio = 0.0;
    // Overrides warmup_ratio when > 0.
    int64_t warmup_steps = 0;
    std::string optimizer = "adamw";
    double adam_beta1 = 0.9;
    double adam_beta2 = 0.999;
    double adam_epsilon = 1e-8;
    double weight_decay = 0.0;
    // 0: no clipping.
    double max_grad_norm = 1.0;
    ActivationMemory activation_memory = ActivationMemory::kAuto;
    uint64_t seed = 42;
    ComputeDtype compute_dtype = ComputeDtype::kAuto;
    bool deterministic = false;
  } train;

  struct Eval {
    Period every;
  } eval;
  struct Logging {
    Period every{.steps = 1};
  } logging;
  struct CheckpointKeys {
    Period every;
    int keep = 3;
  } checkpoint;

  struct Resources {
    int nodes = 1;
    int devices_per_node = 1;
    DeviceKind device = DeviceKind::kAny;
    // Bytes; 0: what the memory plan says.
    int64_t min_device_memory = 0;
  } resources;

  int priority = 50;
  struct Restart {
    int max = 3;
  } restart;
  // Wall-clock limit of RUNNING; zero: none.
  absl::Duration deadline = absl::ZeroDuration();
  struct Output {
    // Empty: the job's.
    std::string name;
    std::vector<std::string> formats = {"peft"};
  } output;

  int world_size() const {
    return resources.nodes * resources.devices_per_node;
  }
  // What the adapter or model is called.
  const std::string& output_name() const {
    return output.name.empty() ? name : output.name;
  }
};

// One thing wrong with a job file.
struct SpecError {
  // Path in the YAML, "data.train[0].format"; empty for the file as a whole.
  std::string path;
  // From 1; 0 if unknown.
  int line = 0;
  int column = 0;
  std::string message;
  // "--set KEY=VALUE" if the value came from there; empty: from the file.
  std::string flag = {};
};

// Parses and checks. All errors are collected (not only the first); on return
// with a non-empty `errors` the spec is not usable.
struct ParsedJob {
  JobSpec spec;
  std::vector<SpecError> errors;
};
// With assignments, what ApplyOverrides makes of the file is checked, but lines
// and columns stay those of `yaml`, and what an assignment gave is told by its
// flag.
ParsedJob ParseJobFile(std::string_view yaml,
                       const std::vector<std::string>& assignments = {});

// InvalidArgument listing "source_name:line:column: path: message", or
// "--set KEY=VALUE: path: message", for each error.
absl::Status SpecErrorsToStatus(const std::vector<SpecError>& errors,
                                std::string_view source_name);

// Sets KEY=VALUE pairs (dotted paths, list indices as in data.train.0.path) in
// YAML text, as `submit --set` does; keeps everything else.
absl::StatusOr<std::string> ApplyOverrides(
    std::string_view yaml, const std::vector<std::string>& assignments);

// The job file with every key that has a value written out, but those that are
// the adapter's to say; parses to the same JobSpec.
std::string ResolvedJobFile(const JobSpec& spec);

// Local paths that the job file names and `submit` must upload if they exist
// beside it (data files, adapter directory, chat template).
std::vector<std::string> NamedPaths(const JobSpec& spec);

std::string_view MethodName(Method method);

}  // namespace qlora
