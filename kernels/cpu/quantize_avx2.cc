// Quantization with AVX2.
#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/dynamic_search.h"
#include "kernels/cpu/quantize_kernels.h"

#define QLORA_SIMD_WIDTH 8

namespace qlora::kernels {
namespace {

// Each builds on those before it.
// clang-format off
#include "kernels/cpu/simd/vector.inc"
#include "kernels/cpu/quantize.inc"
// clang-format on

template <bool kStream>
void StoreHalfLine(void* out, __m256i half) {
  auto* to = static_cast<__m256i*>(out);
  if constexpr (kStream) {
    _mm256_stream_si256(to, half);
  } else {
    _mm256_storeu_si256(to, half);
  }
}

// Codes of sixteen elements, one a byte, from eight packed bytes.
__m128i Unpack(const uint8_t* codes) {
  const __m128i packed =
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  const __m128i nibble = _mm_set1_epi8(15);
  return _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(packed, 4), nibble),
                           _mm_and_si128(packed, nibble));
}

// Of float16 and bfloat16: the sixteen values' low and high bytes.
template <typename T>
struct Table {
  static constexpr int kStep = 16;
  __m128i low_bytes, high_bytes;

  Table(const float* table, float scale) {
    const Scaled<T> scaled(table, scale);
    const auto* halves = reinterpret_cast<const __m128i*>(scaled.values);
    const __m128i first = _mm_loadu_si128(halves);
    const __m128i second = _mm_loadu_si128(halves + 1);
    const __m128i byte = _mm_set1_epi16(0xff);
    low_bytes = _mm_packus_epi16(_mm_and_si128(first, byte),
                                 _mm_and_si128(second, byte));
    high_bytes =
        _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
  }
  template <bool kStream>
  void Expand(const uint8_t* codes, T* out) const {
    const __m128i index = Unpack(codes);
    const __m128i low = _mm_shuffle_epi8(low_bytes, index);
    const __m128i high = _mm_shuffle_epi8(high_bytes, index);
    StoreHalfLine<kStream>(out, _mm256_set_m128i(_mm_unpackhi_epi8(low, high),
                                                 _mm_unpacklo_epi8(low, high)));
  }
};

template <>
struct Table<float> {
  static constexpr int kStep = 16;
  __m256 low, high;  // codes 0 to 7, 8 to 15

  Table(const float* table, float scale)
      : low(_mm256_mul_ps(_mm256_loadu_ps(table), _mm256_set1_ps(scale))),
        high(_mm256_mul_ps(_mm256_loadu_ps(table + 8), _mm256_set1_ps(scale))) {
  }
  __m256i Lookup(__m128i codes) const {
    const __m256i index = _mm256_cvtepu8_epi32(codes);
    // Bit 3 of the code chooses the half: it becomes the sign for the blend.
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    return _mm256_castps_si256(
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                         _mm256_permutevar8x32_ps(high, index), upper));
  }
  template <bool kStream>
  void Expand(const uint8_t* codes, float* out) const {
    const __m128i unpacked = Unpack(codes);
    StoreHalfLine<kStream>(out, Lookup(unpacked));
    StoreHalfLine<kStream>(out + 8, Lookup(_mm_srli_si128(unpacked, 8)));
  }
};

}  // namespace

const QuantizeKernels kQuantizeAvx2 = MakeQuantizeKernels<Table>();

}  // namespace qlora::kernels
