// Plain C++ NF4, the definition that faster backends must match bit for bit.
// Compiled without contraction of multiply and add.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/nf4_kernels.h"

namespace qlora::kernels {
namespace {

// NaN elements do not count, as fmax on the device.
float AbsMax(const float* x, int64_t n) {
  float result = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float a = std::fabs(x[i]);
    result = a > result ? a : result;
  }
  return result;
}

// Codes of n <= 64 elements, one a byte. With absmax 0 the reciprocal is
// infinite, products are NaN and no comparison holds: code 0.
void ChooseCodes(const float* x, int n, float reciprocal, uint8_t* codes) {
  float scaled[64];
  int32_t counts[64] = {};
  for (int i = 0; i < n; ++i) scaled[i] = x[i] * reciprocal;
  for (const float threshold : kNf4Thresholds) {
    for (int i = 0; i < n; ++i) counts[i] += scaled[i] > threshold;
  }
  for (int i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(counts[i]);
}

float QuantizeBlock(const float* x, int64_t n, uint8_t* out) {
  const float absmax = AbsMax(x, n);
  const float reciprocal = 1.0f / absmax;
  for (int64_t begin = 0; begin < n; begin += 64) {
    const int count = static_cast<int>(std::min<int64_t>(64, n - begin));
    uint8_t codes[65];
    ChooseCodes(x + begin, count, reciprocal, codes);
    // The element after an odd end counts as 0.0.
    const float zero = 0;
    if (count % 2 == 1) ChooseCodes(&zero, 1, reciprocal, codes + count);
    for (int i = 0; i < count; i += 2) {
      out[(begin + i) / 2] = static_cast<uint8_t>(codes[i] << 4 | codes[i + 1]);
    }
  }
  return absmax;
}

// Nearest value of the signed map. On a midpoint the value where the halving
// search ended wins, as on the device.
uint8_t NearestDynamic(float x) {
  const auto& map = kDynamicMapSigned;
  int pivot = 127, low = 0, high = 255;
  for (int step = 64; step > 0; step /= 2) {
    if (x > map[pivot]) {
      low = pivot;
      pivot += step;
    } else {
      high = pivot;
      pivot -= step;
    }
  }
  if (x > map[pivot]) {
    return x > (map[high] + map[pivot]) * 0.5f ? high : pivot;
  }
  return x < (map[low] + map[pivot]) * 0.5f ? low : pivot;
}

void QuantizeScales(const float* absmax, int64_t n, float offset, float* scale,
                    uint8_t* codes) {
  float centered[kNestedBlockSize];
  for (int64_t i = 0; i < n; ++i) centered[i] = absmax[i] - offset;
  *scale = AbsMax(centered, n);
  const float reciprocal = 1.0f / *scale;
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = NearestDynamic(centered[i] * reciprocal);
  }
}

uint16_t ToBfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Round to nearest even, by scaling to an integer of half's precision.
uint16_t ToFloat16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  int exponent = -14;
  if (magnitude >= 0x1p-14f) exponent = std::ilogb(magnitude);
  const auto steps = static_cast<uint16_t>(
      std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  // Normal numbers carry the hidden bit, which adds one to the exponent.
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + steps);
}

template <typename T>
T Round(float value, Dtype type) {
  if constexpr (sizeof(T) == 4)
    return value;
  else
    return type == Dtype::kBfloat16 ? ToBfloat16(value) : ToFloat16(value);
}

// Elements [begin, end) of one block; table has its sixteen values.
template <typename T>
void ExpandBlock(const uint8_t* codes, int64_t begin, int64_t end,
                 const T* table, T* out) {
  int64_t i = begin;
  if (i % 2 == 1 && i < end) *out++ = table[codes[i++ / 2] & 15];
  for (; i + 1 < end; i += 2) {
    const uint8_t pair = codes[i / 2];
    *out++ = table[pair >> 4];
    *out++ = table[pair & 15];
  }
  if (i < end) *out = table[codes[i / 2] >> 4];
}

template <typename T>
void ExpandRange(const uint8_t* codes, const ScalesView& scales, int block_size,
                 int64_t begin, int64_t end, Dtype type, T* out) {
  while (begin < end) {
    const int64_t block = begin / block_size;
    const int64_t stop = std::min(end, (block + 1) * block_size);
    const float scale = BlockScale(scales, block);
    T table[16];
    for (int i = 0; i < 16; ++i) {
      table[i] = Round<T>(kNf4Values[i] * scale, type);
    }
    ExpandBlock(codes, begin, stop, table, out);
    out += stop - begin;
    begin = stop;
  }
}

void Expand(const uint8_t* codes, const ScalesView& scales, int block_size,
            int64_t begin, int64_t end, Dtype type, void* out,
            bool /*stream*/) {
  if (type == Dtype::kFloat32) {
    ExpandRange(codes, scales, block_size, begin, end, type,
                static_cast<float*>(out));
  } else {
    ExpandRange(codes, scales, block_size, begin, end, type,
                static_cast<uint16_t*>(out));
  }
}

}  // namespace

const Nf4Kernels kNf4Reference = {"reference", Expand, QuantizeBlock,
                                  QuantizeScales};

}  // namespace qlora::kernels
