#include "bench/trainer_rows.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "bench/machine.h"
#include "bench/peer.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_description.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/gang_runner.h"
#include "worker/trainer/random_model.h"

namespace qlora::bench {
namespace {

constexpr int kRowTokens = 512;
constexpr int kRowsPerStep = 4;
constexpr int kRank = 16;
// Large enough for the losses to fall in a few steps.
constexpr double kLearningRate = 1e-3;

constexpr char kJob[] = R"(
apiVersion: qlora/v1
name: bench
model: {base: random-135m}
method: qlora
lora: {rank: RANK, alpha: ALPHA, target_modules: all-linear, init_adapter: init}
data:
  train: [{path: rows.jsonl, format: tokens}]
  max_seq_len: 512
  shuffle: false
train:
  max_steps: STEPS
  global_batch_size: 4
  learning_rate: LEARNING_RATE
  lr_scheduler: constant
  warmup_ratio: 0
  weight_decay: 0
  compute_dtype: DTYPE
)";

// One program's figures.
struct Figures {
  double tokens_per_second = 0;
  double peak_bytes = 0;
  // What our memory plan says.
  double planned_bytes = 0;
  // Of each step.
  std::vector<double> losses;
  // Of the first.
  double grad_norm = 0;
};

// Arithmetic of a step by token: products with frozen weights forward and
// backward, the head likewise, three products for each LoRA matrix, and causal
// attention (forward, and two and a half times that backward).
double FlopsPerToken(const ModelDescription& m) {
  double linear = 0, lora = 0;
  for (const LinearShape& l : BlockLinears(m)) {
    linear += double(l.in_features) * l.out_features;
    lora += kRank * double(l.in_features + l.out_features);
  }
  const double attention = 3.5 * 2.0 * kRowTokens * m.q_size();
  return m.num_layers * (4 * linear + 6 * lora + attention) +
         4.0 * m.vocab_size * m.hidden_size;
}

absl::Status WriteRowsOfTokens(const std::string& path, int rows,
                               int64_t vocabulary) {
  std::mt19937 random(2);
  std::string lines;
  for (int i = 0; i < rows; ++i) {
    std::vector<int64_t> ids(kRowTokens);
    for (int64_t& id : ids) id = random() % vocabulary;
    lines += nlohmann::json{{"input_ids", ids}}.dump() + "\n";
  }
  return WriteFileAtomically(path, lines);
}

// LoRA's usual start for every linear layer, as PEFT writes it: A uniform in
// +-1/sqrt(in), B zero.
absl::Status WriteInitAdapter(const std::string& directory,
                              const ModelDescription& m) {
  std::mt19937 random(3);
  std::deque<std::vector<float>> storage;
  std::vector<TensorToWrite> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape,
                       float bound) {
    std::uniform_real_distribution<float> uniform(-bound, bound);
    std::vector<float>& values = storage.emplace_back(shape[0] * shape[1]);
    for (float& v : values) v = bound > 0 ? uniform(random) : 0;
    tensors.push_back(
        {name + ".weight",
         TensorDtype::kF32,
         std::move(shape),
         {reinterpret_cast<const uint8_t*>(values.data()), values.size() * 4}});
  };
  std::set<std::string> modules;
  for (int layer = 0; layer < m.num_layers; ++layer) {
    for (const LinearShape& l : BlockLinears(m)) {
      const std::string name =
          absl::StrCat("base_model.model.model.layers.", layer, ".", l.name);
      add(name + ".lora_A", {kRank, l.in_features},
          1 / std::sqrt(static_cast<float>(l.in_features)));
      add(name + ".lora_B", {l.out_features, kRank}, 0);
      modules.insert(l.name.substr(l.name.rfind('.') + 1));
    }
  }
  const nlohmann::json config = {
      {"peft_type", "LORA"},     {"task_type", "CAUSAL_LM"}, {"r", kRank},
      {"lora_alpha", 2 * kRank}, {"lora_dropout", 0},        {"bias", "none"},
      {"fan_in_fan_out", false}, {"target_modules", modules}};
  RETURN_IF_ERROR(CreateDirectories(directory));
  RETURN_IF_ERROR(
      WriteFileAtomically(directory + "/adapter_config.json", config.dump()));
  return WriteSafetensors(directory + "/adapter_model.safetensors", tensors,
                          {{"format", "pt"}})
      .status();
}

v1::TrainerTask MakeTask(const Options& options, const std::string& directory,
                         const std::string& dtype) {
  v1::TrainerTask task;
  task.set_mode(v1::TRAINER_MODE_TRAIN);
  task.set_job_id("j-bench");
  task.set_job_file(
      absl::StrReplaceAll(kJob, {{"RANK", absl::StrCat(kRank)},
                                 {"ALPHA", absl::StrCat(2 * kRank)},
                                 {"STEPS", absl::StrCat(options.steps)},
                                 {"LEARNING_RATE", absl::StrCat(kLearningRate)},
                                 {"DTYPE", dtype}}));
  task.set_model_directory(directory);
  task.set_work_directory(absl::StrCat(directory, "/work-", dtype));
  task.set_world_size(1);
  task.set_threads(options.threads);
  task.set_memory_bytes(options.memory);
  for (const char* name : {"rows.jsonl", "init"}) {
    v1::LocalInput& input = *task.add_inputs();
    input.set_name(name);
    input.set_path(absl::StrCat(directory, "/", name));
  }
  return task;
}

absl::StatusOr<Figures> RunTrainer(const Options& options,
                                   const std::string& directory,
                                   const std::string& dtype) {
  ASSIGN_OR_RETURN(const std::unique_ptr<trainer::Gang> gang,
                   trainer::Gang::Start(options.trainer,
                                        MakeTask(options, directory, dtype)));
  const std::vector<trainer::RankOutcome> outcome = gang->Wait();
  Figures figures;
  for (const v1::TrainerEvent& event : outcome[0].events) {
    if (event.has_failure()) {
      return absl::InternalError(event.failure().message());
    }
    if (!event.has_metrics()) continue;
    const v1::MetricPoint& point = event.metrics();
    figures.peak_bytes = static_cast<double>(point.memory_bytes());
    figures.planned_bytes = static_cast<double>(point.planned_memory_bytes());
    figures.losses.push_back(point.loss());
    if (point.step() == 1) {
      figures.grad_norm = point.grad_norm();
    } else {
      figures.tokens_per_second =
          std::max(figures.tokens_per_second, point.tokens_per_second());
    }
  }
  if (outcome[0].exit_code != 0) {
    return absl::InternalError(absl::StrCat("our run ended with exit code ",
                                            outcome[0].exit_code, ", not 0"));
  }
  return figures;
}

absl::StatusOr<Figures> RunPeft(const Options& options,
                                const std::string& directory,
                                const std::string& dtype) {
  ASSIGN_OR_RETURN(
      const nlohmann::json json,
      RunPeer(options, "peft_peer.py",
              absl::StrCat(directory, " ", directory, "/init ", directory,
                           "/rows.jsonl --dtype ", dtype, " --learning-rate ",
                           kLearningRate, " --steps ", options.steps)));
  return Figures{.tokens_per_second = json["tokens_per_second"],
                 .peak_bytes = json["peak_bytes"],
                 .planned_bytes = 0,
                 .losses = json["losses"],
                 .grad_norm = json["grad_norm"]};
}

// By how much training has lowered the loss.
double Fall(const Figures& figures) {
  return figures.losses.front() - figures.losses.back();
}

// What may differ from the peer, relatively: the first loss and its gradient's
// norm, and by how much training lowers the loss.
struct Tolerance {
  double loss;
  double grad_norm;
  double fall;
};

// The result must be right before a figure of it counts.
absl::Status CheckFigures(const Options& options, const Figures& ours,
                          const std::optional<Figures>& peer,
                          const Tolerance& tolerance) {
  if (static_cast<int>(ours.losses.size()) != options.steps ||
      !(ours.grad_norm > 0) || !(Fall(ours) > 0)) {
    return absl::InternalError(absl::StrCat("our run gave ", ours.losses.size(),
                                            " of ", options.steps,
                                            " losses, or they do not fall"));
  }
  if (!peer) return absl::OkStatus();
  const auto check = [](const char* what, double mine, double other,
                        double limit) {
    if (std::abs(mine / other - 1) <= limit) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat("our ", what, " is ", mine, ", the peer's ", other));
  };
  RETURN_IF_ERROR(
      check("first loss", ours.losses[0], peer->losses[0], tolerance.loss));
  RETURN_IF_ERROR(check("first gradient norm", ours.grad_norm, peer->grad_norm,
                        tolerance.grad_norm));
  return check("loss's fall", Fall(ours), Fall(*peer), tolerance.fall);
}

void PrintCheck(const std::string& name, const char* whose,
                const Figures& figures) {
  std::printf("%s: %s loss %.5f falls by %.5f, first gradient norm %.5f\n",
              name.c_str(), whose, figures.losses[0], Fall(figures),
              figures.grad_norm);
}

std::string RowName(const std::string& dtype) {
  return "trainer/qlora-135m/" + dtype;
}

absl::Status RunDtype(const Options& options, const std::string& directory,
                      const ModelDescription& model, const std::string& dtype,
                      std::vector<Row>* rows) {
  const bool bf16 = dtype == "bfloat16";
  const std::string name = RowName(dtype);
  // A machine whose speed changes during the minutes that this takes must not
  // make a share of more than there is.
  Limit gemm =
      GemmLimit(bf16 ? kernels::Dtype::kBfloat16 : kernels::Dtype::kFloat32,
                options.threads);
  const auto measure = [&] {
    for (int i = 0; i < 10; ++i) gemm.Measure();
  };
  measure();
  ASSIGN_OR_RETURN(const Figures ours, RunTrainer(options, directory, dtype));
  measure();
  std::optional<Figures> peer;
  if (!options.peer_python.empty()) {
    ASSIGN_OR_RETURN(peer, RunPeft(options, directory, dtype));
    measure();
  }
  std::printf("%s: peak %.0f MB, planned %.0f MB\n", name.c_str(),
              ours.peak_bytes / 1e6, ours.planned_bytes / 1e6);
  PrintCheck(name, "our", ours);
  if (peer) PrintCheck(name, "the peer's", *peer);
  RETURN_IF_ERROR(CheckFigures(
      options, ours, peer,
      bf16 ? Tolerance{.loss = 2e-3, .grad_norm = 5e-2, .fall = 5e-2}
           : Tolerance{.loss = 2e-4, .grad_norm = 1e-2, .fall = 1e-2}));
  Row speed{
      .name = name + "/throughput",
      .value = ours.tokens_per_second,
      .unit = "tokens/s",
      .peer_value = {},
      .ratio = {},
      .limit_share = ours.tokens_per_second * FlopsPerToken(model) / gemm.best};
  Row memory{.name = name + "/peak_memory",
             .value = ours.peak_bytes,
             .unit = "bytes",
             .peer_value = {},
             .ratio = {},
             .limit_share = {}};
  if (peer) {
    speed.peer_value = peer->tokens_per_second;
    speed.ratio = ours.tokens_per_second / peer->tokens_per_second;
    memory.peer_value = peer->peak_bytes;
    memory.ratio = peer->peak_bytes / ours.peak_bytes;
  }
  rows->push_back({.name = gemm.name,
                   .value = gemm.best,
                   .unit = gemm.unit,
                   .peer_value = {},
                   .ratio = {},
                   .limit_share = {}});
  rows->push_back(speed);
  rows->push_back(memory);
  return absl::OkStatus();
}

}  // namespace

absl::Status AddTrainerRows(const Options& options, std::vector<Row>* rows) {
  std::vector<std::string> dtypes = {"float32", "bfloat16"};
  std::erase_if(dtypes, [&](const std::string& dtype) {
    return !options.Wants(RowName(dtype));
  });
  if (dtypes.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const ModelDescription model,
                   ParseModelConfig(std::string(trainer::kLlama135M)));
  const std::string directory =
      absl::StrCat(std::filesystem::temp_directory_path().string(),
                   "/qlora-bench-", getpid());
  RETURN_IF_ERROR(CreateDirectories(directory));
  absl::Status status =
      trainer::WriteRandomModel(directory, trainer::kLlama135M);
  status.Update(WriteInitAdapter(directory + "/init", model));
  status.Update(WriteRowsOfTokens(directory + "/rows.jsonl", kRowsPerStep,
                                  model.vocab_size));
  for (const std::string& dtype : dtypes) {
    if (status.ok()) status = RunDtype(options, directory, model, dtype, rows);
  }
  status.Update(RemoveRecursively(directory));
  return status;
}

}  // namespace qlora::bench
