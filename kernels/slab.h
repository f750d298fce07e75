// The slab: the tensors of one block of the model in one buffer, packed as
// quantized, which can be cut into equal shards without regard to what lies
// where, and dequantized from the shards put together. docs/formats/slab.md
// draws it.
//
// A tensor begins at a multiple of kSlabAlignment, and so does each part of it:
//
//   codes | absmax                                 (plain)
//   codes | absmax_codes | absmax_scale | offset   (nested)
//
// The parts are those of quant_format.h, in bitsandbytes' order; zeros fill up
// what is between.
#pragma once

#include <cstdint>

#include "kernels/quant_format.h"

namespace qlora::kernels {

// A line of the caches, and what vector stores ask for.
inline constexpr int64_t kSlabAlignment = 64;

constexpr int64_t AlignToSlab(int64_t bytes) {
  return (bytes + kSlabAlignment - 1) / kSlabAlignment * kSlabAlignment;
}

// Bytes of each of `shards` equal shards; the last is filled up.
constexpr int64_t SlabShardBytes(int64_t slab_bytes, int shards) {
  return AlignToSlab((slab_bytes + shards - 1) / shards);
}

// Where the parts of a quantized tensor begin, in bytes from its codes.
struct PackedLayout {
  // Which scales there are: the last three, or absmax. The others' places are
  // 0.
  bool nested = false;
  int64_t absmax = 0;
  int64_t absmax_codes = 0;
  int64_t absmax_scale = 0;
  int64_t offset = 0;
  // Of the whole tensor, a multiple of kSlabAlignment.
  int64_t bytes = 0;
};

constexpr PackedLayout MakePackedLayout(const BlockwiseShape& shape,
                                        bool nested) {
  PackedLayout layout{.nested = nested};
  const auto reserve = [&layout](int64_t bytes) {
    const int64_t at = layout.bytes;
    layout.bytes += AlignToSlab(bytes);
    return at;
  };
  reserve(shape.code_bytes());
  if (nested) {
    layout.absmax_codes = reserve(shape.num_blocks());
    layout.absmax_scale = reserve(shape.num_nested_blocks() * 4);
    layout.offset = reserve(4);
  } else {
    layout.absmax = reserve(shape.num_blocks() * 4);
  }
  return layout;
}

// The scales of the tensor that begins at `tensor`.
ScalesView ViewScales(const PackedLayout& layout, const uint8_t* tensor);
MutableScales MutableScalesOf(const PackedLayout& layout, uint8_t* tensor);

// Between the parts as bitsandbytes keeps them, each on its own, and a tensor
// of a slab, without a change to any byte; the form of scales is the layout's.
void PackTensor(const BlockwiseShape& shape, const PackedLayout& layout,
                const uint8_t* codes, const ScalesView& scales,
                uint8_t* tensor);
void UnpackTensor(const BlockwiseShape& shape, const PackedLayout& layout,
                  const uint8_t* tensor, uint8_t* codes,
                  const MutableScales& scales);

// The example of docs/formats/slab.md: 5 rows of 100 elements in blocks of 64.
static_assert(MakePackedLayout({500, 64}, true).absmax_codes == 256);
static_assert(MakePackedLayout({500, 64}, true).absmax_scale == 320);
static_assert(MakePackedLayout({500, 64}, true).offset == 384);
static_assert(MakePackedLayout({500, 64}, true).bytes == 448);
static_assert(MakePackedLayout({500, 64}, false).absmax == 256);
static_assert(MakePackedLayout({500, 64}, false).bytes == 320);
static_assert(SlabShardBytes(448, 2) == 256);
static_assert(SlabShardBytes(448, 3) == 192);
static_assert(sizeof(float) == 4);

}  // namespace qlora::kernels
