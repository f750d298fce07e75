// All buffers of a model's step, cut out of one allocation. The memory plan
// (common/spec/memory_plan.h) predicts its size by the same sums.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/spec/memory_plan.h"
#include "common/spec/model_description.h"
#include "worker/trainer/model/block.h"
#include "worker/trainer/ops/loss.h"
#include "worker/trainer/parallel/aligned_buffer.h"

namespace qlora::trainer {

struct WorkspaceOptions {
  const ModelDescription* model = nullptr;
  Dtype dtype = Dtype::kFloat32;
  // 0: no adapter.
  int lora_rank = 0;
  bool dropout = false;
  int64_t max_tokens = 0;
  // Per layer; those below `first` are never gone through backward. Empty: none
  // is.
  std::vector<LayerMemory> layers;
  int first = 0;
  // Decoding: no backward, no loss; positions up to max_positions.
  bool decode = false;
  int64_t max_positions = 0;
  int threads = 1;
};

class Workspace {
 public:
  // ResourceExhausted without memory.
  static absl::StatusOr<Workspace> Create(const WorkspaceOptions& options);

  // What Create would allocate.
  static int64_t BytesOf(const WorkspaceOptions& options);

  int64_t bytes() const { return static_cast<int64_t>(memory_.bytes().size()); }

  // One per layer from `first` on, whole. Only x is everyone's own: the rest is
  // `shared` in a recomputed layer, as are gate and up where the MLP is.
  std::vector<BlockState> states;
  // For evaluation and layers below `first`; has no x. May share buffers with
  // any layer, see workspace.cc.
  BlockState shared;
  float* x_final = nullptr;
  float* dx = nullptr;
  RotaryTable rotary;
  BlockScratch block;
  LossArgs loss;
  // Decoding: of one row, of the compute type.
  void* logits = nullptr;
  // That block.linear.weight has room for.
  int64_t weight_elements = 0;
  std::span<uint64_t> row_keys;
  // Decoding: k and v of each layer are in its state.

 private:
  class Cutter;
  void Cut(const WorkspaceOptions& options, Cutter& cutter);

  AlignedBuffer memory_;
};

}  // namespace qlora::trainer
