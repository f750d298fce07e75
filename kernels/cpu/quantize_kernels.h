// What an instruction set implements of quantization; cpu/blockwise.cc splits
// the ops over it. All give the bytes of the reference.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/blockwise.h"

namespace qlora::kernels {

struct QuantizeKernels {
  void (*to_float)(const void* x, Dtype dtype, int64_t n, float* out);
  // x of n elements, in blocks of block_size: a scale each, and codes.
  void (*quantize_four_bit)(FourBitType type, const float* x, int64_t n,
                            int block_size, float* absmax, uint8_t* codes);
  // Elements [begin, end) of the flattened tensor of `op` into out, as its
  // type. `stream`: the result is larger than the caches, write around them.
  void (*expand_four_bit)(const Dequantize& op, int64_t begin, int64_t end,
                          void* out, bool stream);
  // One block; returns its scale.
  float (*quantize_dynamic)(DynamicMap map, const float* x, int64_t n,
                            uint8_t* codes);
  void (*expand_dynamic)(DynamicMap map, const uint8_t* codes, int64_t n,
                         float scale, float* out);
  // One row; returns its scale.
  float (*quantize_int8)(const void* x, Dtype dtype, int64_t n, int8_t* codes);
  void (*expand_int8)(const int8_t* codes, int64_t n, float scale, Dtype dtype,
                      void* out);
};

// Of the instruction set "avx512"; the baseline's where there are none.
const QuantizeKernels& QuantizeKernelsFor(std::string_view name);

extern const QuantizeKernels kQuantizeBaseline;
extern const QuantizeKernels kQuantizeAvx2;
extern const QuantizeKernels kQuantizeAvx512;

// absmax of a block. Without fused multiply-add: each rounding counts. Static,
// so that no file gets the one that another instruction set was compiled for.
static inline float BlockScale(const ScalesView& scales, int64_t block) {
  if (scales.absmax != nullptr) return scales.absmax[block];
  const float product =
      kDynamicMapSigned[scales.absmax_codes[block]] *
      scales.absmax_scale[static_cast<uint64_t>(block) / kNestedBlockSize];
  return product + *scales.offset;
}

}  // namespace qlora::kernels
