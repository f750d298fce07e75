// Views of frozen weights for one forward or backward pass. They own nothing;
// who hands them out (BlockSource) says how long they live. No tensor type, so
// that loading and sharding do not depend on the tensor library.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/quant_format.h"

namespace qlora::trainer {

enum class WeightFormat { kFloat32, kBfloat16, kNf4 };

// y = x W^T + bias, W is [out_features, in_features] row-major.
struct LinearWeight {
  WeightFormat format = WeightFormat::kFloat32;
  int64_t out_features = 0;
  int64_t in_features = 0;
  // Dense values, or packed codes.
  const void* data = nullptr;
  // kNf4 only.
  kernels::ScalesView scales;
  int block_size = 0;
  // float32 [out_features], or null.
  const float* bias = nullptr;
};

// One decoder block.
struct BlockWeights {
  // float32 [hidden].
  const float* input_norm = nullptr;
  const float* post_attention_norm = nullptr;
  LinearWeight q, k, v, o, gate, up, down;
};

// Embedding, final norm and head. With tied embeddings head.data equals
// embedding.data.
struct OuterWeights {
  // [vocab, hidden], kFloat32 or kBfloat16.
  LinearWeight embedding;
  const float* final_norm = nullptr;
  LinearWeight head;
};

// Hands out a model's frozen weights, gathering them from other ranks if they
// are sharded. Used by one thread. Every rank makes the same sequence of calls:
// they are collective.
class BlockSource {
 public:
  virtual ~BlockSource() = default;
  // A hint: the block will be acquired soon. Sources that gather override it
  // and Release; to others both are nothing.
  virtual void Prefetch(int /*layer*/) {}
  // Valid until Release(layer). Unavailable if a peer is gone.
  virtual absl::StatusOr<BlockWeights> Acquire(int layer) = 0;
  virtual void Release(int /*layer*/) {}
  // Valid as long as the source.
  virtual absl::StatusOr<OuterWeights> AcquireOuter() = 0;
};

}  // namespace qlora::trainer
