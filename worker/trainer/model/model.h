// The decoder: embedding, blocks, norm, head; explicit forward and backward.
//
// A Model owns its workspace (allocated once, by the memory plan) and no
// weights: frozen ones come from a BlockSource, trainable ones live in one flat
// float32 buffer that the optimizer owns. Used by one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/spec/memory_plan.h"
#include "common/spec/model_description.h"
#include "worker/trainer/data/batch.h"
#include "worker/trainer/model/phase_clock.h"
#include "worker/trainer/model/weights.h"

namespace qlora::trainer {

// A trainable tensor inside the flat buffers, float32, row-major.
struct TrainableTensor {
  // HF name with ".weight": "model.layers.0.self_attn.q_proj.lora_A.weight"
  // (the PEFT key without "base_model.model."), or, for method full, the
  // model's own "model.embed_tokens.weight".
  std::string name;
  std::vector<int64_t> shape;
  // Elements from the start of the buffer.
  int64_t offset = 0;
  int64_t size = 0;
};

// The order and place of all trainable tensors. Fixed by model and options
// alone, so that every rank and every resume has the same.
struct TrainableLayout {
  std::vector<TrainableTensor> tensors;
  int64_t total = 0;
  const TrainableTensor* Find(std::string_view name) const;
};

struct LoraOptions {
  int rank = 0;
  // alpha / r, or alpha / sqrt(r) with rsLoRA.
  float scale = 1;
  float dropout = 0;
  // Full module names, as MatchTargetModules gives them.
  std::vector<std::string> modules;
};

struct ModelOptions {
  Method method = Method::kLora;
  ComputeDtype compute_dtype = ComputeDtype::kFloat32;
  // Empty for method full.
  LoraOptions lora;
  // One per layer, from the memory plan. Empty: the model has no room for a
  // backward and ForwardBackward is FailedPrecondition.
  std::vector<LayerMemory> layers;
  // Largest micro-batch, tokens.
  int64_t max_tokens = 0;
  // Told of forward, backward and waiting for blocks. Null: nobody asks.
  PhaseClock* clock = nullptr;
};

// Names the dropout bits of a micro-batch: the same for any number of ranks,
// because rows are counted over the whole job.
struct DropoutKey {
  uint64_t seed = 0;
  uint64_t step = 0;
  // For each document of the micro-batch, a number unique within the step.
  std::vector<uint64_t> document_ids;
};

struct LossSum {
  // Sum of -log p over trained targets, accumulated in float64.
  double loss = 0;
  int64_t tokens = 0;
};

class Model {
 public:
  static absl::StatusOr<std::unique_ptr<Model>> Create(
      const ModelDescription& description, const ModelOptions& options);
  virtual ~Model() = default;

  virtual const TrainableLayout& layout() const = 0;

  // Adds d(loss_scale * loss sum)/d(params) to grads. params and grads have
  // layout().total elements. loss_scale is 1 / trained tokens of the global
  // batch.
  virtual absl::StatusOr<LossSum> ForwardBackward(const MicroBatch& batch,
                                                  BlockSource& weights,
                                                  std::span<const float> params,
                                                  float loss_scale,
                                                  const DropoutKey& dropout,
                                                  std::span<float> grads) = 0;

  virtual absl::StatusOr<LossSum> Evaluate(const MicroBatch& batch,
                                           BlockSource& weights,
                                           std::span<const float> params) = 0;

  // Joins the collectives of one ForwardBackward (or Evaluate) without rows.
  virtual absl::Status SkipForwardBackward(BlockSource& weights) = 0;
  virtual absl::Status SkipEvaluate(BlockSource& weights) = 0;

  // Bytes of workspace that were allocated, for comparison with the plan.
  virtual int64_t workspace_bytes() const = 0;
};

// Computes logits one token after another with a key-value cache.
class Decoder {
 public:
  // Bounds: max_length positions in all.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(
      const ModelDescription& description, const ModelOptions& options,
      int64_t max_length);
  virtual ~Decoder() = default;
  // Of the workspace, with the cache, that Create allocates for the same.
  static int64_t WorkspaceBytes(const ModelDescription& description,
                                const ModelOptions& options,
                                int64_t max_length);
  virtual void Reset() = 0;
  // Appends tokens and gives the logits [vocab] after the last, float32, valid
  // until the next call. params may be empty: the base alone. OutOfRange past
  // max_length.
  virtual absl::StatusOr<std::span<const float>> Append(
      std::span<const int32_t> tokens, BlockSource& weights,
      std::span<const float> params) = 0;
};

// Fresh values of the trainable tensors: LoRA's A uniform in +-1/sqrt(in) and
// B zero, or, for random models, N(0, initializer_range) and norms 1. Counter
// based: depends on seed and tensor name alone.
void InitializeTrainable(const ModelDescription& description,
                         const TrainableLayout& layout, uint64_t seed,
                         std::span<float> params);

}  // namespace qlora::trainer
