// NF4 with AVX-512 (F, BW, VL, DQ). Bit for bit what reference/nf4.cc defines;
// compiled without contraction of multiply and add.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels/nf4_kernels.h"

namespace qlora::kernels {
namespace {

// The sixteen values times the block's scale, as float32.
__m512 ScaledTable(float scale) {
  return _mm512_mul_ps(_mm512_loadu_ps(kNf4Values.data()),
                       _mm512_set1_ps(scale));
}

// To bfloat16, nearest even; a NaN keeps its upper bits and becomes quiet. Not
// the processor's own conversion, which flushes subnormal numbers.
__m256i ToBfloat16(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i upper = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd),
      16);
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)));
}

__m256i ToFloat16(__m512 values) {
  const __m256i half =
      _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // The reference has one NaN per sign.
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m256i sign = _mm256_and_si256(half, _mm256_set1_epi16(-0x8000));
  return _mm256_mask_mov_epi16(
      half, nan, _mm256_or_si256(sign, _mm256_set1_epi16(0x7e00)));
}

// A block's values for permutation by code.
struct FloatTable {
  static constexpr int kStep = 16;
  using Element = float;
  __m512 values;
  explicit FloatTable(float scale, Dtype /*type*/)
      : values(ScaledTable(scale)) {}
  // Sixteen elements from eight bytes. The permutation reads the low four bits
  // of each index, so the upper nibble of `bytes` does no harm there.
  __m512i Expand(const uint8_t* codes) const {
    const __m512i bytes = _mm512_cvtepu8_epi64(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const __m512i index = _mm512_or_si512(_mm512_srli_epi64(bytes, 4),
                                          _mm512_slli_epi64(bytes, 32));
    return _mm512_castps_si512(_mm512_permutexvar_ps(index, values));
  }
};

struct HalfTable {
  static constexpr int kStep = 32;
  using Element = uint16_t;
  // The sixteen values twice: the permutation reads five bits of each index,
  // and the fifth belongs to the neighbour.
  __m512i values;
  HalfTable(float scale, Dtype type)
      : values(_mm512_broadcast_i64x4(type == Dtype::kBfloat16
                                          ? ToBfloat16(ScaledTable(scale))
                                          : ToFloat16(ScaledTable(scale)))) {}
  __m512i Expand(const uint8_t* codes) const {
    const __m512i bytes = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const __m512i index = _mm512_or_si512(_mm512_srli_epi32(bytes, 4),
                                          _mm512_slli_epi32(bytes, 16));
    return _mm512_permutexvar_epi16(index, values);
  }
};

template <bool kStream>
void Store(void* out, __m512i value) {
  if constexpr (kStream) {
    _mm512_stream_si512(static_cast<__m512i*>(out), value);
  } else {
    _mm512_storeu_si512(out, value);
  }
}

// Elements [begin, end) of a block, at any parity and length.
template <typename Table>
void ExpandSlowly(const Table& table, const uint8_t* codes, int64_t begin,
                  int64_t end, typename Table::Element* out) {
  while (begin < end) {
    const int64_t first = begin & ~int64_t{1};
    const int64_t count = std::min<int64_t>(end - first, Table::kStep);
    uint8_t bytes[16] = {};
    std::memcpy(bytes, codes + first / 2, (count + 1) / 2);
    alignas(64) typename Table::Element elements[Table::kStep];
    _mm512_store_si512(elements, table.Expand(bytes));
    std::copy(elements + (begin - first), elements + count, out);
    out += first + count - begin;
    begin = first + count;
  }
}

template <typename Table, bool kStream>
void ExpandRange(const uint8_t* codes, const ScalesView& scales, int block_size,
                 int64_t begin, int64_t end, Dtype type,
                 typename Table::Element* out) {
  constexpr int kStep = Table::kStep;
  while (begin < end) {
    const int64_t block = begin / block_size;
    const int64_t stop = std::min(end, (block + 1) * block_size);
    const Table table(BlockScale(scales, block), type);
    if (begin % 2 == 0) {
      for (; begin + kStep <= stop; begin += kStep, out += kStep) {
        Store<kStream>(out, table.Expand(codes + begin / 2));
      }
    }
    if (begin < stop) ExpandSlowly(table, codes, begin, stop, out);
    out += stop - begin;
    begin = stop;
  }
}

template <typename Table>
void ExpandAny(const uint8_t* codes, const ScalesView& scales, int block_size,
               int64_t begin, int64_t end, Dtype type, void* out, bool stream) {
  auto* elements = static_cast<typename Table::Element*>(out);
  // Every store of a range that starts at a step's multiple and at a full line
  // is a full line.
  if (stream && begin % Table::kStep == 0 &&
      reinterpret_cast<uintptr_t>(out) % 64 == 0) {
    ExpandRange<Table, true>(codes, scales, block_size, begin, end, type,
                             elements);
    _mm_sfence();
  } else {
    ExpandRange<Table, false>(codes, scales, block_size, begin, end, type,
                              elements);
  }
}

void Expand(const uint8_t* codes, const ScalesView& scales, int block_size,
            int64_t begin, int64_t end, Dtype type, void* out, bool stream) {
  if (type == Dtype::kFloat32) {
    ExpandAny<FloatTable>(codes, scales, block_size, begin, end, type, out,
                          stream);
  } else {
    ExpandAny<HalfTable>(codes, scales, block_size, begin, end, type, out,
                         stream);
  }
}

__mmask16 FirstLanes(int64_t n) {
  return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1);
}

// The maximum instruction returns its second operand where either is NaN.
float AbsMax(const float* x, int64_t n) {
  __m512 result = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 value = _mm512_maskz_loadu_ps(FirstLanes(n - i), x + i);
    result = _mm512_max_ps(_mm512_abs_ps(value), result);
  }
  return _mm512_reduce_max_ps(result);
}

// Number of thresholds below each value: halving search over 15 thresholds.
__m512i Codes(__m512 scaled, __m512 thresholds) {
  __m512i code = _mm512_setzero_si512();
  for (const int step : {8, 4, 2, 1}) {
    const __m512i offset = _mm512_set1_epi32(step);
    const __m512 threshold = _mm512_permutexvar_ps(
        _mm512_add_epi32(code, _mm512_set1_epi32(step - 1)), thresholds);
    const __mmask16 above = _mm512_cmp_ps_mask(scaled, threshold, _CMP_GT_OQ);
    code = _mm512_mask_add_epi32(code, above, code, offset);
  }
  return code;
}

float QuantizeBlock(const float* x, int64_t n, uint8_t* out) {
  const float absmax = AbsMax(x, n);
  const __m512 reciprocal = _mm512_set1_ps(1.0f / absmax);
  const __m512 thresholds =
      _mm512_maskz_loadu_ps(0x7fff, kNf4Thresholds.data());
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = FirstLanes(n - i);
    // The element after an odd end counts as 0.0.
    const __m512 scaled =
        _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), reciprocal);
    const __m512i codes = Codes(scaled, thresholds);
    const __m512i pairs = _mm512_or_si512(_mm512_slli_epi64(codes, 4),
                                          _mm512_srli_epi64(codes, 32));
    const int64_t bytes = (std::min<int64_t>(16, n - i) + 1) / 2;
    _mm_mask_storeu_epi8(out + i / 2, (1u << bytes) - 1,
                         _mm512_cvtepi64_epi8(pairs));
  }
  return absmax;
}

// Sixteen searches at a time, as NearestDynamic of the reference.
__m512i NearestDynamic(__m512 x) {
  const float* map = kDynamicMapSigned.data();
  const auto gather = [map](__m512i index) {
    return _mm512_i32gather_ps(index, map, 4);
  };
  __m512i pivot = _mm512_set1_epi32(127);
  __m512i low = _mm512_setzero_si512();
  __m512i high = _mm512_set1_epi32(255);
  for (int step = 64; step > 0; step /= 2) {
    const __mmask16 above = _mm512_cmp_ps_mask(x, gather(pivot), _CMP_GT_OQ);
    low = _mm512_mask_mov_epi32(low, above, pivot);
    high = _mm512_mask_mov_epi32(pivot, above, high);
    const __m512i offset = _mm512_set1_epi32(step);
    pivot = _mm512_mask_add_epi32(_mm512_sub_epi32(pivot, offset), above, pivot,
                                  offset);
  }
  const __m512 value = gather(pivot);
  const __mmask16 above = _mm512_cmp_ps_mask(x, value, _CMP_GT_OQ);
  const __m512i other = _mm512_mask_mov_epi32(low, above, high);
  const __m512 middle =
      _mm512_mul_ps(_mm512_add_ps(gather(other), value), _mm512_set1_ps(0.5f));
  const __mmask16 beyond =
      _mm512_mask_cmp_ps_mask(above, x, middle, _CMP_GT_OQ) |
      _mm512_mask_cmp_ps_mask(_knot_mask16(above), x, middle, _CMP_LT_OQ);
  return _mm512_mask_mov_epi32(pivot, beyond, other);
}

void QuantizeScales(const float* absmax, int64_t n, float offset, float* scale,
                    uint8_t* codes) {
  const __m512 offsets = _mm512_set1_ps(offset);
  __m512 largest = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = FirstLanes(n - i);
    const __m512 centered = _mm512_maskz_sub_ps(
        lanes, _mm512_maskz_loadu_ps(lanes, absmax + i), offsets);
    largest = _mm512_max_ps(_mm512_abs_ps(centered), largest);
  }
  *scale = _mm512_reduce_max_ps(largest);
  const __m512 reciprocal = _mm512_set1_ps(1.0f / *scale);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = FirstLanes(n - i);
    const __m512 centered =
        _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, absmax + i), offsets);
    _mm512_mask_cvtepi32_storeu_epi8(
        codes + i, lanes, NearestDynamic(_mm512_mul_ps(centered, reciprocal)));
  }
}

}  // namespace

const Nf4Kernels kNf4Avx512 = {"avx512", Expand, QuantizeBlock, QuantizeScales};

}  // namespace qlora::kernels
