// Quantization on any processor: vectors of four floats.
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/dynamic_search.h"
#include "kernels/cpu/quantize_kernels.h"

#define QLORA_SIMD_WIDTH 4

namespace qlora::kernels {
namespace {

// Each builds on those before it.
// clang-format off
#include "kernels/cpu/simd/vector.inc"
#include "kernels/cpu/quantize.inc"
// clang-format on

template <typename T>
struct Table {
  static constexpr int kStep = 2;
  const Scaled<T> scaled;

  Table(const float* table, float scale) : scaled(table, scale) {}
  template <bool kStream>
  void Expand(const uint8_t* codes, T* out) const {
    out[0] = scaled.values[*codes >> 4];
    out[1] = scaled.values[*codes & 15];
  }
};

}  // namespace

const QuantizeKernels kQuantizeBaseline = MakeQuantizeKernels<Table>();

}  // namespace qlora::kernels
