// Predicts, before anything is allocated, what one rank's training step holds.
// Pure arithmetic: the coordinator uses it for placement, `qloractl plan` shows
// it, the trainer allocates by it. Bytes everywhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/spec/job_spec.h"
#include "common/spec/model_description.h"

namespace qlora {

// What a layer's backward does not find and computes again: nothing, the two
// wide products of its MLP (about half of what a layer keeps), or all but its
// input. Each holds less than the one before.
enum class LayerMemory { kKeep, kRecomputeMlp, kRecompute };

// Gathered blocks of a sharded base that a rank holds: one in use, two on their
// way.
inline constexpr int kGatheredBlocks = 3;

// The tensor library, its thread pool and buffers of its products. Measured as
// peak resident memory less the other items, on x86-64 with 2 threads: 118 MiB
// with the library loaded and no model, 138 MiB in steps of 135 M parameters in
// float32, 147 MiB in bfloat16. The rest is for machines with more threads.
inline constexpr int64_t kRuntimeBytes = int64_t{200} << 20;

struct MemoryItem {
  // "base (sharded)", "gathered blocks", "adapter", "gradients", "optimizer",
  // "activations", "workspace", "logits", "data" (the job's tokens), "loading"
  // (what reading the data or the base takes above all that comes after it),
  // "runtime".
  std::string what;
  int64_t bytes;
};

struct MemoryPlan {
  std::vector<MemoryItem> items;
  // One per layer; none where only forwards are planned.
  std::vector<LayerMemory> layers;
  // Rows of max_seq_len tokens per forward.
  int micro_batch_size = 1;
  // The last of micro_batch_halvings found nothing left to save: this is the
  // plan before it.
  bool nothing_left = false;
  ComputeDtype compute_dtype = ComputeDtype::kFloat32;
  int64_t total() const {
    int64_t sum = 0;
    for (const MemoryItem& item : items) sum += item.bytes;
    return sum;
  }
};

struct MemoryPlanInput {
  const ModelDescription* model = nullptr;
  const JobSpec* spec = nullptr;
  int world_size = 1;
  // What a rank may use; 0: unlimited (everything is kept).
  int64_t budget = 0;
  // Whether the device has bfloat16 arithmetic faster than float32.
  bool fast_bfloat16 = false;
  // Compute threads of a rank: the cores of its device, or one if it has none
  // of its own. Each has scratch.
  int threads = 1;
  // Of the tokens in memory; 0 where the data was not read yet.
  int64_t data_bytes = 0;
  // Forwards of one row at a time: no gradients, no optimizer, nothing is held
  // for a backward.
  bool evaluation = false;
  // How often a plan ran out of memory and the next one must hold less: half
  // the rows per forward or, with one row and activation_memory: auto, half of
  // what can still be recomputed. No layer keeps what it recomputed before.
  int micro_batch_halvings = 0;
};

// `wanted`, or what the device is faster in if that is kAuto.
ComputeDtype ChooseComputeDtype(ComputeDtype wanted, bool fast_bfloat16);

// Tokens whose logits exist at a time.
int64_t LossChunkTokens(const ModelDescription& model, int64_t max_tokens);

// ResourceExhausted if even recomputing every layer with one row does not fit,
// or the one row of an evaluation does not; the message says what needs how
// much.
absl::StatusOr<MemoryPlan> PlanMemory(const MemoryPlanInput& input);

// ", and may use 5 MiB: base 3 MiB, runtime 4 MiB;" for an error about a plan
// that does not fit; the first part only with a budget.
std::string AgainstBudget(const MemoryPlan& plan, int64_t budget);

// ResourceExhausted, for a plan of `input` with nothing_left.
absl::Status NothingLeftError(const MemoryPlanInput& input,
                              const MemoryPlan& plan);

// Whether an error is NothingLeftError: it stays with any more halvings. A plan
// that a rank has no room for is not: another node may have it.
bool IsLeastMemory(const absl::Status& status);

}  // namespace qlora
