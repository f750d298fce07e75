// Quantization with AVX-512 (F, BW, VL, DQ). VBMI has nothing to add: tables
// hold sixteen values of two bytes or four, which vpermw and vpermps pick
// whole, while vpermb would pick their bytes one by one.
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

// Sixteen values rounded to T, twice in a row; as Store, but quicker.
__m512i RoundTwice(__m512 v, Bf16) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd =
      _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i kept =
      _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q),
                           bits, _mm512_set1_epi32(0x400000));
  const __m512i upper_halves = _mm512_set_epi16(
      31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1,  //
      31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutexvar_epi16(upper_halves, kept);
}

__m512i RoundTwice(__m512 v, Fp16) {
  return _mm512_broadcast_i64x4(
      _mm512_cvtepi32_epi16((__m512i)HalfBits((VF)v)));
}

// Of float16 and bfloat16. The sixteen values lie there twice: the permutation
// reads five bits of each index, and the fifth belongs to the neighbour.
template <typename T>
struct Table {
  static constexpr int kStep = 32;
  __m512i values;

  Table(const float* table, float scale)
      : values(RoundTwice(
            _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(scale)),
            T{})) {}
  template <bool kStream>
  void Expand(const uint8_t* codes, T* out) const {
    const __m512i all = _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    // Each byte goes to a word for either nibble.
    const __m512i bytes = _mm512_shuffle_epi8(
        all, _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c,
                              0x0b0b0b0b, 0x0a0a0a0a, 0x09090909, 0x08080808,
                              0x07070707, 0x06060606, 0x05050505, 0x04040404,
                              0x03030303, 0x02020202, 0x01010101, 0));
    const __m512i index = _mm512_srlv_epi16(bytes, _mm512_set1_epi32(4));
    StoreLine<kStream>(out, _mm512_permutexvar_epi16(index, values));
  }
};

// The permutation reads the low four bits of each index, so that the upper
// nibble of a byte does no harm.
template <>
struct Table<float> {
  static constexpr int kStep = 16;
  __m512 values;

  Table(const float* table, float scale)
      : values(_mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(scale))) {}
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
