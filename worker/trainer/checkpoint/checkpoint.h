// Checkpoints of a training job: one directory each, self-verifying
// (docs/formats/checkpoint.md).
//
//   <parent>/<step>/
//     params.safetensors   trainable tensors, float32, names of the layout
//     adam_m.safetensors   first moments, same names
//     adam_v.safetensors   second moments, same names
//     metrics.jsonl        the curve so far (curve.h)
//     manifest.sha256      "<hex>  manifest.json\n"
//     manifest.json        written last: what the files are, size and SHA-256
//
// What is restored is bit for bit what was saved. Functions are stateless.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/trainer/data/sampler.h"
#include "worker/trainer/model/model.h"

namespace qlora::trainer {

// Everything but the tensors.
struct CheckpointState {
  std::string job_id;
  int attempt = 0;
  // Optimizer steps done.
  int64_t step = 0;
  int64_t total_steps = 0;
  int world_size = 1;
  // Of the base model's files, and of the tokenized data set; a resume on
  // others is refused by the trainer, who computes them.
  std::string base_sha256;
  std::string dataset_sha256;
  // The order of rows follows from these.
  uint64_t seed = 0;
  bool shuffle = true;
  DataCursor cursor;
  std::string optimizer = "adamw";
  // Loss statistics.
  int64_t tokens_trained = 0;
  int64_t tokens_total = 0;
  // Of step 1.
  std::optional<double> first_loss;
  std::optional<double> last_loss;
  std::optional<double> best_eval_loss;
  // Seconds of training in all attempts.
  double train_seconds = 0;
  std::string compute_dtype;
  bool deterministic = false;
  // Library -> version.
  std::map<std::string, std::string> versions;
};

// The flat buffers, layout.total elements each.
struct StateBuffers {
  std::span<float> params;
  std::span<float> adam_m;
  std::span<float> adam_v;
};
struct ConstStateBuffers {
  std::span<const float> params;
  std::span<const float> adam_m;
  std::span<const float> adam_v;
};

// SHA-256 over step and buffers: equal on all ranks or something is wrong.
std::string StateSha256(int64_t step, const ConstStateBuffers& buffers);

struct StagedCheckpoint {
  // <parent>/<step>, absolute if parent is.
  std::string directory;
  std::string manifest_sha256;
  int64_t size_bytes = 0;
};

// metrics_path: a file, copied, so that a resume elsewhere has the curve.
//
// Writes a checkpoint durably: into <parent>/<step>.tmp-<random>, every file
// synced, manifest last, directory synced, renamed, parent synced. An earlier
// directory of the same step is replaced. On any error nothing of it stays:
// ResourceExhausted (disk full), PermissionDenied, Unavailable.
absl::StatusOr<StagedCheckpoint> StageCheckpoint(
    const std::string& parent, const CheckpointState& state,
    const TrainableLayout& layout, const ConstStateBuffers& buffers,
    const std::string& metrics_path);

// Verifies sizes and every digest before anything is used, then fills the
// buffers. DataLoss naming file and what differs; FailedPrecondition when the
// checkpoint is sound but of another layout (names, shapes) or a newer format;
// NotFound.
absl::StatusOr<CheckpointState> LoadCheckpoint(const std::string& directory,
                                               const TrainableLayout& layout,
                                               const StateBuffers& buffers);

}  // namespace qlora::trainer
