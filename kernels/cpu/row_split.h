// How the ops over rows choose their kernels and are split over threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/simd/kernels.h"
#include "kernels/types.h"

namespace qlora::kernels {

// What is larger than this is written past the caches.
inline constexpr int64_t kStreamBytes = 16 << 20;

inline bool IsLarge(const View& out) {
  return out.rows * out.columns * ElementSize(out.dtype) >= kStreamBytes;
}

// Calls f(kernels, T{}) with what the element type needs.
template <typename F>
Result WithKernels(const KernelSet& set, Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat32:
      f(set.float32, float{});
      return Result::kOk;
    case Dtype::kBfloat16:
      f(set.bfloat16, Bf16{});
      return Result::kOk;
    default:
      return Result::kUnsupported;
  }
}

// f(r) for every row of x, enough elements at a time that handing them to a
// thread pays.
template <typename F>
void ForRows(const Launch& launch, const View& x, F f) {
  const int64_t grain = std::max<int64_t>(1, 16384 / x.columns);
  launch.parallel_for(x.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) f(r);
  });
}

// f(first, n) over ranges of columns: a sum over rows stays in their order.
template <typename F>
void ForColumns(const Launch& launch, int64_t columns, F f) {
  constexpr int64_t kStep = 64;
  launch.parallel_for((columns + kStep - 1) / kStep, 1,
                      [&](int64_t begin, int64_t end) {
                        const int64_t first = begin * kStep;
                        f(first, std::min(columns, end * kStep) - first);
                      });
}

}  // namespace qlora::kernels
