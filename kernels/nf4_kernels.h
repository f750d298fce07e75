// What an instruction set implements of NF4; kernels/blockwise.h is the way in.
// Every implementation gives the bytes of reference/nf4.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/nf4.h"

namespace qlora::kernels {

struct Nf4Kernels {
  const char* name;
  // Elements [begin, end) of the flattened tensor into out, as `type`.
  // `stream`: the result is larger than the caches, write around them.
  void (*expand)(const uint8_t* codes, const ScalesView& scales, int block_size,
                 int64_t begin, int64_t end, Dtype type, void* out,
                 bool stream);
  // One block of n elements: its codes; returns its absmax.
  float (*quantize_block)(const float* x, int64_t n, uint8_t* codes);
  // n <= kNestedBlockSize scales of one nested block.
  void (*quantize_scales)(const float* absmax, int64_t n, float offset,
                          float* scale, uint8_t* codes);
};

extern const Nf4Kernels kNf4Reference;
extern const Nf4Kernels kNf4Avx2;
extern const Nf4Kernels kNf4Avx512;

// What this processor can run: the reference first, the fastest last.
const std::vector<const Nf4Kernels*>& Nf4Available();

// Blocks [begin, end): their absmax and codes.
void QuantizeBlocks(const Nf4Kernels& kernels, const float* x,
                    const BlockwiseShape& shape, int64_t begin, int64_t end,
                    float* absmax, uint8_t* codes);

// absmax of a block. Without fused multiply-add: each rounding counts. Static,
// so that no file gets the one that another instruction set was compiled for.
static inline float BlockScale(const ScalesView& scales, int64_t block) {
  if (scales.absmax != nullptr) return scales.absmax[block];
  const float product = kDynamicMapSigned[scales.absmax_codes[block]] *
                        scales.absmax_scale[block / kNestedBlockSize];
  return product + scales.offset;
}

}  // namespace qlora::kernels
