// Blockwise 4-bit quantization: the public entry points of the kernel library.
// Raw pointers in, no allocation, no threads of its own: the caller passes a
// ParallelFor. Functions are re-entrant.
//
// Defined for every input, as bitsandbytes on CUDA: NaN elements do not count
// for absmax and get code 0, a block whose absmax is 0 gets code 0 throughout,
// infinities give an infinite scale.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/quant_format.h"
#include "kernels/types.h"

namespace qlora::kernels {

enum class Nf4Result {
  kOk,
  // block_size not a power of two in [32, 4096], a null pointer, or a range
  // outside the tensor.
  kInvalidArgument,
};

// Bytes of scratch that QuantizeNf4 needs (the plain absmax of nested scales).
size_t QuantizeNf4WorkspaceBytes(const BlockwiseShape& shape, bool nested);

// Quantizes x[n] (float32). What is written does not depend on parallel_for:
// the mean behind `offset` is summed in a fixed order.
Nf4Result QuantizeNf4(const float* x, const BlockwiseShape& shape,
                      uint8_t* codes, const MutableScales& scales,
                      void* workspace, const ParallelFor& parallel_for);

// Dequantizes rows [row_begin, row_end) of a row-major [rows, columns] tensor
// into `out` with `leading_dimension` elements from row to row (row row_begin
// goes to out). value = table[code] * absmax in float32, then rounded once to
// `type`. With nested scales absmax = map[q] * absmax_scale (rounded) + offset
// (rounded), without fused multiply-add.
Nf4Result DequantizeNf4(const uint8_t* codes, const ScalesView& scales,
                        int64_t rows, int64_t columns, int block_size,
                        int64_t row_begin, int64_t row_end, Dtype type,
                        void* out, int64_t leading_dimension,
                        const ParallelFor& parallel_for);

}  // namespace qlora::kernels
