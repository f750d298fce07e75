#include "kernels/blockwise.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/row_split.h"

namespace qlora::kernels {
namespace {

// Elements that a thread takes at a time, and the largest block.
constexpr int64_t kGrain = 16384;
constexpr int64_t kMostBlock = 4096;

// Blocks [begin, end) as float32, some blocks at a time.
void QuantizeBlocks(const QuantizeKernels& kernels, const Quantize& op,
                    int64_t begin, int64_t end, float* absmax) {
  const int64_t size = op.shape.block_size;
  const int64_t last = std::min(end * size, op.shape.num_elements);
  if (op.dtype == Dtype::kFloat32) {
    kernels.quantize_four_bit(op.type,
                              static_cast<const float*>(op.x) + begin * size,
                              last - begin * size, op.shape.block_size,
                              absmax + begin, op.codes + begin * size / 2);
    return;
  }
  alignas(64) float values[kMostBlock];
  for (int64_t i = begin * size; i < last; i += kMostBlock) {
    const int64_t n = std::min(kMostBlock, last - i);
    kernels.to_float(static_cast<const uint16_t*>(op.x) + i, op.dtype, n,
                     values);
    kernels.quantize_four_bit(op.type, values, n, op.shape.block_size,
                              absmax + i / size, op.codes + i / 2);
  }
}

// In float64 and in order, so that it depends on nothing but the values.
float Mean(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return n == 0 ? 0 : static_cast<float>(sum / static_cast<double>(n));
}

void NestScales(const QuantizeKernels& kernels, const ParallelFor& parallel_for,
                const float* absmax, const BlockwiseShape& shape,
                const MutableScales& scales) {
  const int64_t blocks = shape.num_blocks();
  const float offset = Mean(absmax, blocks);
  *scales.offset = offset;
  const auto nest = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kNestedBlockSize;
      const int64_t n = std::min<int64_t>(kNestedBlockSize, blocks - first);
      float centered[kNestedBlockSize];
      for (int64_t i = 0; i < n; ++i) centered[i] = absmax[first + i] - offset;
      scales.absmax_scale[b] = kernels.quantize_dynamic(
          DynamicMap::kSigned, centered, n, scales.absmax_codes + first);
    }
  };
  parallel_for(shape.num_nested_blocks(), 16, nest);
}

// f(block, its first element, elements) for every block.
template <typename F>
void ForBlocks(const Launch& launch, const BlockwiseShape& shape, F f) {
  const int64_t size = shape.block_size;
  launch.parallel_for(
      shape.num_blocks(), kGrain / size, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          f(b, b * size, std::min(size, shape.num_elements - b * size));
        }
      });
}

int64_t RowGrain(const View& v) {
  return std::max<int64_t>(1, kGrain / v.columns);
}

}  // namespace

Result CpuBackend::Do(const Launch& launch, const Quantize& op) const {
  const bool nested = op.scales.absmax == nullptr;
  float* absmax =
      nested ? static_cast<float*>(launch.workspace) : op.scales.absmax;
  const int64_t grain = kGrain / op.shape.block_size;
  launch.parallel_for(op.shape.num_blocks(), grain,
                      [&](int64_t begin, int64_t end) {
                        QuantizeBlocks(quantize_, op, begin, end, absmax);
                      });
  if (nested) {
    NestScales(quantize_, launch.parallel_for, absmax, op.shape, op.scales);
  }
  return Result::kOk;
}

int64_t CpuBackend::Room(const Quantize& op, int /*threads*/) const {
  return op.scales.absmax == nullptr ? op.shape.num_blocks() * 4 : 0;
}

Result CpuBackend::Do(const Launch& launch, const Dequantize& op) const {
  const View& out = op.out;
  const bool stream = IsLarge(out);
  const auto expand = [&](int64_t begin, int64_t end) {
    const bool dense = out.stride == out.columns;
    const int64_t step = dense ? end - begin : 1;
    for (int64_t row = begin; row < end; row += step) {
      const int64_t first = (op.row_begin + row) * out.columns;
      quantize_.expand_four_bit(op, first, first + step * out.columns,
                                out.Rows(row, step).data, stream);
    }
  };
  launch.parallel_for(out.rows, RowGrain(out), expand);
  return Result::kOk;
}

Result CpuBackend::Do(const Launch& launch, const QuantizeInt8Rows& op) const {
  ForRows(launch, op.x, [&](int64_t row) {
    op.scale[row] =
        quantize_.quantize_int8(op.x.Rows(row, 1).data, op.x.dtype,
                                op.x.columns, op.codes + row * op.x.columns);
  });
  return Result::kOk;
}

Result CpuBackend::Do(const Launch& launch,
                      const DequantizeInt8Rows& op) const {
  ForRows(launch, op.out, [&](int64_t row) {
    quantize_.expand_int8(op.codes + row * op.out.columns, op.out.columns,
                          op.scale[row], op.out.dtype,
                          op.out.Rows(row, 1).data);
  });
  return Result::kOk;
}

Result CpuBackend::Do(const Launch& launch, const QuantizeDynamic& op) const {
  ForBlocks(launch, op.shape, [&](int64_t b, int64_t first, int64_t n) {
    op.scale[b] =
        quantize_.quantize_dynamic(op.map, op.x + first, n, op.codes + first);
  });
  return Result::kOk;
}

Result CpuBackend::Do(const Launch& launch, const DequantizeDynamic& op) const {
  ForBlocks(launch, op.shape, [&](int64_t b, int64_t first, int64_t n) {
    quantize_.expand_dynamic(op.map, op.codes + first, n, op.scale[b],
                             op.out + first);
  });
  return Result::kOk;
}

}  // namespace qlora::kernels
