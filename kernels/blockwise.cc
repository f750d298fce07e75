#include "kernels/nf4.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <bit>
#include <cstddef>

#include "kernels/nf4_kernels.h"

namespace qlora::kernels {
namespace {

// Results from this size on are written around the caches, which they would
// only empty: more than the second level of two cores, less than the third.
constexpr int64_t kStreamBytes = 16 << 20;

bool ValidBlockSize(int block_size) {
  return block_size >= 32 && block_size <= 4096 &&
         std::has_single_bit(static_cast<unsigned>(block_size));
}

// In float64 and in order, so that it depends on nothing but the values.
float Mean(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return n == 0 ? 0 : static_cast<float>(sum / static_cast<double>(n));
}

#if defined(__x86_64__)
// By hand: not every compiler's __builtin_cpu_supports knows it.
bool HasF16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

const Nf4Kernels& Best() {
  static const Nf4Kernels& best = *Nf4Available().back();
  return best;
}

}  // namespace

void SerialFor(int64_t n, int64_t /*grain*/,
               const std::function<void(int64_t, int64_t)>& body) {
  if (n > 0) body(0, n);
}

const std::vector<const Nf4Kernels*>& Nf4Available() {
  static const auto* available = [] {
    auto* list = new std::vector<const Nf4Kernels*>{&kNf4Reference};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && HasF16c()) {
      list->push_back(&kNf4Avx2);
    }
    if (__builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      list->push_back(&kNf4Avx512);
    }
#endif
    return list;
  }();
  return *available;
}

void QuantizeBlocks(const Nf4Kernels& kernels, const float* x,
                    const BlockwiseShape& shape, int64_t begin, int64_t end,
                    float* absmax, uint8_t* codes) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * shape.block_size;
    const int64_t n =
        std::min<int64_t>(shape.block_size, shape.num_elements - first);
    absmax[b] = kernels.quantize_block(x + first, n, codes + first / 2);
  }
}

size_t QuantizeNf4WorkspaceBytes(const BlockwiseShape& shape, bool nested) {
  return nested ? shape.num_blocks() * sizeof(float) : 0;
}

Nf4Result QuantizeNf4(const float* x, const BlockwiseShape& shape,
                      uint8_t* codes, const MutableScales& scales,
                      void* workspace, const ParallelFor& parallel_for) {
  const bool nested = scales.absmax == nullptr;
  if (!ValidBlockSize(shape.block_size) || shape.num_elements < 0 ||
      x == nullptr || codes == nullptr ||
      (nested &&
       (workspace == nullptr || scales.absmax_codes == nullptr ||
        scales.absmax_scale == nullptr || scales.offset == nullptr))) {
    return Nf4Result::kInvalidArgument;
  }
  auto* absmax = nested ? static_cast<float*>(workspace) : scales.absmax;
  const int64_t blocks = shape.num_blocks();
  parallel_for(blocks, 64, [&](int64_t begin, int64_t end) {
    QuantizeBlocks(Best(), x, shape, begin, end, absmax, codes);
  });
  if (!nested) return Nf4Result::kOk;
  const float offset = Mean(absmax, blocks);
  *scales.offset = offset;
  parallel_for(shape.num_nested_blocks(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kNestedBlockSize;
      Best().quantize_scales(
          absmax + first, std::min<int64_t>(kNestedBlockSize, blocks - first),
          offset, scales.absmax_scale + b, scales.absmax_codes + first);
    }
  });
  return Nf4Result::kOk;
}

Nf4Result DequantizeNf4(const uint8_t* codes, const ScalesView& scales,
                        int64_t rows, int64_t columns, int block_size,
                        int64_t row_begin, int64_t row_end, Dtype type,
                        void* out, int64_t leading_dimension,
                        const ParallelFor& parallel_for) {
  const bool nested = scales.absmax == nullptr;
  if (!ValidBlockSize(block_size) || codes == nullptr || out == nullptr ||
      columns <= 0 || row_begin < 0 || row_begin > row_end || row_end > rows ||
      leading_dimension < columns ||
      (nested &&
       (scales.absmax_codes == nullptr || scales.absmax_scale == nullptr))) {
    return Nf4Result::kInvalidArgument;
  }
  const int64_t element = type == Dtype::kFloat32 ? 4 : 2;
  const bool stream = (row_end - row_begin) * columns * element >= kStreamBytes;
  const int64_t grain = std::max<int64_t>(1, 16384 / columns);
  parallel_for(row_end - row_begin, grain, [&](int64_t begin, int64_t end) {
    const int64_t first = (row_begin + begin) * columns;
    auto* at =
        static_cast<std::byte*>(out) + begin * leading_dimension * element;
    if (leading_dimension == columns) {
      Best().expand(codes, scales, block_size, first,
                    first + (end - begin) * columns, type, at, stream);
      return;
    }
    for (int64_t row = begin; row < end; ++row) {
      const int64_t start = (row_begin + row) * columns;
      Best().expand(codes, scales, block_size, start, start + columns, type,
                    at + (row - begin) * leading_dimension * element, stream);
    }
  });
  return Nf4Result::kOk;
}

}  // namespace qlora::kernels
