// Where the frozen tensors of a model lie in memory: one slab for each block of
// the model, and one for embedding, final norm and head.
//
// A slab holds its tensors one after another, dense ones (float32, or bfloat16
// for matrices when computing in it) and packed ones as kernels/slab.h has it.
// The layout follows from the model's description and the options alone: it
// depends neither on the number of ranks nor on the files. Pure functions, but
// for ReadIntoSlab.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_description.h"
#include "kernels/slab.h"
#include "kernels/types.h"
#include "worker/trainer/model/weights.h"

namespace qlora::trainer {

struct SlabOptions {
  // Format of the blocks' linear layers: kNf4, or as `dense`.
  WeightFormat linear = WeightFormat::kNf4;
  // Format of embedding, head and, without quantization, linear layers.
  WeightFormat dense = WeightFormat::kFloat32;
  int block_size = 64;
  // Nested scales; of NF4 only.
  bool double_quant = true;
  // The linear layers are dense, with the values that NF4 keeps: for decoding
  // (worker/trainer/generation_plan.h).
  bool nf4_values = false;
};

// One tensor: bytes [begin, end) of the slab.
struct SlabTensor {
  // HF name; in a block relative to it: "self_attn.q_proj.weight".
  std::string name;
  std::vector<int64_t> shape;
  WeightFormat format = WeightFormat::kFloat32;
  int64_t begin = 0;
  int64_t end = 0;
  // kNf4 only.
  kernels::PackedLayout packed;
  // Dense, of the values that NF4 keeps.
  bool nf4_values = false;

  int64_t num_elements() const;
};

struct SlabLayout {
  std::vector<SlabTensor> tensors;
  // A multiple of kernels::kSlabAlignment.
  int64_t bytes = 0;
  int block_size = 0;

  // Null if absent.
  const SlabTensor* Find(std::string_view name) const;
};

SlabLayout MakeBlockLayout(const ModelDescription& model,
                           const SlabOptions& options);
SlabLayout MakeOuterLayout(const ModelDescription& model,
                           const SlabOptions& options);

// "model.layers.3." for the tensors of a block.
std::string BlockPrefix(int layer);

// Views into a slab of this layout; valid as long as the slab.
BlockWeights ViewBlock(const ModelDescription& model, const SlabLayout& layout,
                       const uint8_t* slab);
OuterWeights ViewOuter(const ModelDescription& model, const SlabLayout& layout,
                       const uint8_t* slab);

// Reads `prefix + tensor.name` whole and writes its bytes [begin, end) as they
// stand in the slab, quantized where the layout says so; options are those of
// the layout. CheckModelTensor (common/spec/model_files.h) must have passed.
absl::Status ReadIntoSlab(const SafetensorsReader& reader,
                          const std::string& prefix, const SlabTensor& tensor,
                          const SlabOptions& options,
                          const kernels::ParallelFor& parallel_for,
                          std::span<uint8_t> out);

}  // namespace qlora::trainer
