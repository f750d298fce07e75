// What a finished job leaves behind (docs/formats/output.md): the adapter, or
// for method full the model, with model card, job file, metrics, evaluation
// record and checksums. Stateless.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/spec/job_spec.h"
#include "common/spec/model_description.h"
#include "worker/trainer/model/model.h"

namespace qlora::trainer {

// eval.json: what `adapter verify` measures again.
struct EvalRecord {
  // Mean over tokens.
  double loss = 0;
  int64_t tokens = 0;
  // "eval" for the evaluation set, "train" for the first global batch.
  std::string data;
  // "float32" or "bfloat16": what it was computed in, and the training too.
  std::string compute_dtype;
};

struct JobOutput {
  std::string job_id;
  const JobSpec* spec = nullptr;
  const ModelDescription* model = nullptr;
  // Where config.json and the tokenizer of the base lie.
  std::string base_directory;
  // LoraOptions::modules; empty for method full.
  std::vector<std::string> modules;
  const TrainableLayout* layout = nullptr;
  std::span<const float> params;
  // A file, copied.
  std::string metrics_path;
  EvalRecord eval;
  // For the model card. What was read and left out, in words.
  std::string records;
  int64_t steps = 0;
  int64_t tokens_trained = 0;
  std::optional<double> final_loss;
  int world_size = 1;
  absl::Duration train_time = absl::ZeroDuration();
  absl::Time finish_time = absl::UnixEpoch();
};

// Writes everything into a temporary directory beside `directory`, synced, and
// renames it; an older one of that name is replaced. On an error nothing stays:
// ResourceExhausted (disk full), NotFound (a file to copy), Unavailable.
absl::Status WriteJobOutput(const std::string& directory,
                            const JobOutput& output);

// InvalidArgument, NotFound.
absl::StatusOr<EvalRecord> ReadEvalRecord(const std::string& directory);

// DataLoss naming the first file that SHA256SUMS does not confirm; NotFound
// without SHA256SUMS.
absl::Status VerifyChecksums(const std::string& directory);

}  // namespace qlora::trainer
