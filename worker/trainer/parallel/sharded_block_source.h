// The frozen weights of a model, sharded over the ranks of a gang.
//
// The slab of each block is cut into equal shards, one a rank; Prefetch and
// Acquire gather it packed. kGatheredBlocks gathered slabs are kept, and reused
// while they last, since they never change. Embedding, final norm and head are
// needed whole at a step's peak: every rank keeps them whole. In a gang of one
// nothing is copied. Used by one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_description.h"
#include "kernels/types.h"
#include "worker/trainer/model/weights.h"
#include "worker/trainer/parallel/aligned_buffer.h"
#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/parallel/slab.h"

namespace qlora::trainer {

// What was passed to collectives since the start: bytes of their results on
// this rank, its own part included. All zero in a gang of one.
struct GatherCounts {
  // All-gathered slabs of blocks, with what fills up the last shard.
  int64_t block_bytes = 0;
  // How many slabs these were.
  int64_t gathers = 0;
  // Embedding, final norm and head: broadcast once, at load.
  int64_t other_bytes = 0;
};

class ShardedBlockSource : public BlockSource {
 public:
  // Reads the model. Each tensor is read and quantized whole by one rank (they
  // take turns), and its bytes are scattered: a rank holds its shards and one
  // tensor. Everything passed must outlive the object, but for reader and
  // parallel_for.
  // InvalidArgument names the tensor that is missing or wrong;
  // ResourceExhausted without memory; else as the communicator and the reader.
  static absl::StatusOr<std::unique_ptr<ShardedBlockSource>> Load(
      const ModelDescription& model, const SafetensorsReader& reader,
      const SlabOptions& options, Communicator& communicator,
      const kernels::ParallelFor& parallel_for);
  ~ShardedBlockSource() override;

  void Prefetch(int layer) override;
  absl::StatusOr<BlockWeights> Acquire(int layer) override;
  void Release(int layer) override;
  absl::StatusOr<OuterWeights> AcquireOuter() override;

  const GatherCounts& counts() const { return counts_; }
  // Of one block, as gathered: the slab and what fills up the last shard.
  int64_t gathered_slab_bytes() const;
  const SlabLayout& block_layout() const { return block_layout_; }

 private:
  // A place for one gathered slab.
  struct Slot {
    int layer = -1;
    int users = 0;
    int64_t last_use = 0;
    AlignedBuffer slab;
    std::unique_ptr<Communicator::Pending> pending;
  };
  class Loader;

  ShardedBlockSource(const ModelDescription& model, const SlabOptions& options,
                     Communicator& communicator);
  absl::Status Allocate();
  std::span<uint8_t> Shard(int layer) const;
  Slot* FindSlot(int layer);
  // The slot of the layer, its gather begun; null if all are in use.
  absl::StatusOr<Slot*> StartGather(int layer);

  const ModelDescription& model_;
  const SlabOptions options_;
  Communicator& communicator_;
  const SlabLayout block_layout_;
  const SlabLayout outer_layout_;
  const int64_t shard_bytes_;
  AlignedBuffer shards_;
  AlignedBuffer outer_;
  std::vector<Slot> slots_;
  int64_t uses_ = 0;
  GatherCounts counts_;
  // Of Prefetch, reported by the next Acquire.
  absl::Status prefetch_error_;
};

}  // namespace qlora::trainer
