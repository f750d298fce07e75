// NF4 with AVX2 and F16C. Bit for bit what reference/nf4.cc defines; compiled
// without contraction of multiply and add.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels/nf4_kernels.h"

namespace qlora::kernels {
namespace {

// Codes of sixteen elements, one a byte, from eight packed bytes.
__m128i Unpack(const uint8_t* codes) {
  const __m128i packed =
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  const __m128i nibble = _mm_set1_epi8(15);
  return _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(packed, 4), nibble),
                           _mm_and_si128(packed, nibble));
}

struct ScaledValues {
  __m256 low, high;  // codes 0 to 7, 8 to 15
  explicit ScaledValues(float scale)
      : low(_mm256_mul_ps(_mm256_loadu_ps(kNf4Values.data()),
                          _mm256_set1_ps(scale))),
        high(_mm256_mul_ps(_mm256_loadu_ps(kNf4Values.data() + 8),
                           _mm256_set1_ps(scale))) {}
};

struct FloatTable {
  using Element = float;
  ScaledValues values;
  FloatTable(float scale, Dtype /*type*/) : values(scale) {}
  __m256 Lookup(__m128i codes) const {
    const __m256i index = _mm256_cvtepu8_epi32(codes);
    // Bit 3 of the code chooses the half: it becomes the sign for the blend.
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(values.low, index),
                            _mm256_permutevar8x32_ps(values.high, index),
                            upper);
  }
  void Expand(const uint8_t* codes, float* out) const {
    const __m128i unpacked = Unpack(codes);
    _mm256_storeu_ps(out, Lookup(unpacked));
    _mm256_storeu_ps(out + 8, Lookup(_mm_srli_si128(unpacked, 8)));
  }
};

// To bfloat16 in the lower half of each lane, nearest even; a NaN keeps its
// upper bits and becomes quiet.
__m256i ToBfloat16(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd),
      16);
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  const __m256 nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
}

// The reference has one NaN per sign.
__m256i ToFloat16(__m256 values) {
  const __m256i half = _mm256_cvtepu16_epi32(
      _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  const __m256i quiet =
      _mm256_or_si256(_mm256_and_si256(half, _mm256_set1_epi32(0x8000)),
                      _mm256_set1_epi32(0x7e00));
  const __m256 nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(half, quiet, _mm256_castps_si256(nan));
}

struct HalfTable {
  using Element = uint16_t;
  __m128i low_bytes, high_bytes;  // of the sixteen values
  HalfTable(float scale, Dtype type) {
    const ScaledValues values(scale);
    const bool bfloat = type == Dtype::kBfloat16;
    alignas(32) uint32_t wide[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(wide),
                       bfloat ? ToBfloat16(values.low) : ToFloat16(values.low));
    _mm256_store_si256(
        reinterpret_cast<__m256i*>(wide + 8),
        bfloat ? ToBfloat16(values.high) : ToFloat16(values.high));
    alignas(16) uint8_t low[16], high[16];
    for (int i = 0; i < 16; ++i) {
      low[i] = static_cast<uint8_t>(wide[i]);
      high[i] = static_cast<uint8_t>(wide[i] >> 8);
    }
    low_bytes = _mm_load_si128(reinterpret_cast<__m128i*>(low));
    high_bytes = _mm_load_si128(reinterpret_cast<__m128i*>(high));
  }
  void Expand(const uint8_t* codes, uint16_t* out) const {
    const __m128i index = Unpack(codes);
    const __m128i low = _mm_shuffle_epi8(low_bytes, index);
    const __m128i high = _mm_shuffle_epi8(high_bytes, index);
    auto* vectors = reinterpret_cast<__m128i*>(out);
    _mm_storeu_si128(vectors, _mm_unpacklo_epi8(low, high));
    _mm_storeu_si128(vectors + 1, _mm_unpackhi_epi8(low, high));
  }
};

// Elements [begin, end) of a block, at any parity and length.
template <typename Table>
void ExpandSlowly(const Table& table, const uint8_t* codes, int64_t begin,
                  int64_t end, typename Table::Element* out) {
  while (begin < end) {
    const int64_t first = begin & ~int64_t{1};
    const int64_t count = std::min<int64_t>(end - first, 16);
    uint8_t bytes[8] = {};
    std::memcpy(bytes, codes + first / 2, (count + 1) / 2);
    typename Table::Element elements[16];
    table.Expand(bytes, elements);
    std::copy(elements + (begin - first), elements + count, out);
    out += first + count - begin;
    begin = first + count;
  }
}

template <typename Table>
void ExpandRange(const uint8_t* codes, const ScalesView& scales, int block_size,
                 int64_t begin, int64_t end, Dtype type,
                 typename Table::Element* out) {
  while (begin < end) {
    const int64_t block = begin / block_size;
    const int64_t stop = std::min(end, (block + 1) * block_size);
    const Table table(BlockScale(scales, block), type);
    if (begin % 2 == 0) {
      for (; begin + 16 <= stop; begin += 16, out += 16) {
        table.Expand(codes + begin / 2, out);
      }
    }
    if (begin < stop) ExpandSlowly(table, codes, begin, stop, out);
    out += stop - begin;
    begin = stop;
  }
}

void Expand(const uint8_t* codes, const ScalesView& scales, int block_size,
            int64_t begin, int64_t end, Dtype type, void* out,
            bool /*stream*/) {
  if (type == Dtype::kFloat32) {
    ExpandRange<FloatTable>(codes, scales, block_size, begin, end, type,
                            static_cast<float*>(out));
  } else {
    ExpandRange<HalfTable>(codes, scales, block_size, begin, end, type,
                           static_cast<uint16_t*>(out));
  }
}

}  // namespace

const Nf4Kernels kNf4Avx2 = {"avx2", Expand, kNf4Reference.quantize_block,
                             kNf4Reference.quantize_scales};

}  // namespace qlora::kernels
