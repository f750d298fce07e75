// Quantization: 4-bit blocks (NF4, FP4), 8-bit rows (LLM.int8), 8-bit blocks of
// the dynamic map (optimizer moments). The formats are in quant_format.h.
//
// Defined for every input, as bitsandbytes on CUDA: NaN elements do not count
// for a scale and get code 0, a block or row whose scale is 0 gets code 0
// throughout, infinities give an infinite scale. An empty tensor is allowed and
// leaves all but `offset` (then 0) alone. Every backend gives the same bytes:
// the error constant of these ops is 0.
#pragma once

#include <cstdint>

#include "kernels/quant_format.h"
#include "kernels/types.h"

namespace qlora::kernels {

// Quantizes a flattened tensor. What is written does not depend on Launch: the
// mean behind `offset` is summed in a fixed order. WorkspaceBytes reads shape
// and scales.
struct Quantize {
  FourBitType type = FourBitType::kNf4;
  // num_elements values, float32, bfloat16 or float16; without a stride, for
  // blocks run across rows. A part that begins at a block's begin, quantized on
  // its own, gives the whole's codes and plain scales; nested ones have a mean
  // over the whole.
  const void* x = nullptr;
  Dtype dtype = Dtype::kFloat32;
  // block_size: a power of two in [32, 4096].
  BlockwiseShape shape;
  uint8_t* codes = nullptr;
  // Nested scales need workspace.
  MutableScales scales;
};

// Rows [row_begin, row_begin + out.rows) of a row-major [rows, out.columns]
// tensor. value = table[code] * absmax in float32, then rounded once to out's
// type. With nested scales absmax = map[q] * absmax_scale (rounded) + offset
// (rounded), without fused multiply-add.
struct Dequantize {
  FourBitType type = FourBitType::kNf4;
  const uint8_t* codes = nullptr;
  ScalesView scales;
  int64_t rows = 0;
  int block_size = 64;
  int64_t row_begin = 0;
  View out;
};

// LLM.int8: x rounded to float16 first; scale[r] = max |x[r]|, code = x * (127
// / scale) rounded to nearest even; 0 where that is NaN.
struct QuantizeInt8Rows {
  View x;
  // [rows, columns], dense.
  int8_t* codes = nullptr;
  // [rows].
  float* scale = nullptr;
};

// out = code * scale[r] * kInt8Step, products in this order.
struct DequantizeInt8Rows {
  const int8_t* codes = nullptr;
  const float* scale = nullptr;
  View out;
};

// Blocks of `block_size` (a power of two in [64, 4096]) elements: scale = max
// |x|, code = the nearest value of the map to x / scale (as x * (1 / scale));
// on a midpoint the even code, where the device's halving search ends.
struct QuantizeDynamic {
  DynamicMap map = DynamicMap::kSigned;
  const float* x = nullptr;
  BlockwiseShape shape;
  uint8_t* codes = nullptr;
  // [num_blocks].
  float* scale = nullptr;
};

// out[i] = map[code] * scale.
struct DequantizeDynamic {
  DynamicMap map = DynamicMap::kSigned;
  const uint8_t* codes = nullptr;
  const float* scale = nullptr;
  BlockwiseShape shape;
  float* out = nullptr;
};

}  // namespace qlora::kernels
