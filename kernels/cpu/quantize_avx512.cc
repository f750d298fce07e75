// Quantization with AVX-512 (F, BW, VL, DQ).
#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/dynamic_search.h"
#include "kernels/cpu/quantize_kernels.h"

#define QLORA_SIMD_WIDTH 16

namespace qlora::kernels {
namespace {

// Each builds on those before it.
// clang-format off
#include "kernels/cpu/simd/vector.inc"
#include "kernels/cpu/quantize.inc"
// clang-format on

template <bool kStream>
void StoreLine(void* out, __m512i line) {
  if constexpr (kStream) {
    _mm512_stream_si512(static_cast<__m512i*>(out), line);
  } else {
    _mm512_storeu_si512(out, line);
  }
}

// Of float16 and bfloat16. The sixteen values lie there twice: the permutation
// reads five bits of each index, and the fifth belongs to the neighbour.
template <typename T>
struct Table {
  static constexpr int kStep = 32;
  __m512i values;

  explicit Table(const T* scaled)
      : values(_mm512_broadcast_i64x4(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scaled)))) {}
  template <bool kStream>
  void Expand(const uint8_t* codes, T* out) const {
    const __m512i bytes = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const __m512i index = _mm512_or_si512(_mm512_srli_epi32(bytes, 4),
                                          _mm512_slli_epi32(bytes, 16));
    StoreLine<kStream>(out, _mm512_permutexvar_epi16(index, values));
  }
};

// The permutation reads the low four bits of each index, so that the upper
// nibble of a byte does no harm.
template <>
struct Table<float> {
  static constexpr int kStep = 16;
  __m512 values;

  explicit Table(const float* scaled) : values(_mm512_loadu_ps(scaled)) {}
  template <bool kStream>
  void Expand(const uint8_t* codes, float* out) const {
    const __m512i bytes = _mm512_cvtepu8_epi64(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const __m512i index = _mm512_or_si512(_mm512_srli_epi64(bytes, 4),
                                          _mm512_slli_epi64(bytes, 32));
    StoreLine<kStream>(
        out, _mm512_castps_si512(_mm512_permutexvar_ps(index, values)));
  }
};

}  // namespace

const QuantizeKernels kQuantizeAvx512 = MakeQuantizeKernels<Table>();

}  // namespace qlora::kernels
