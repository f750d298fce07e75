// The rules of docs/formats/bitsandbytes.md, element by element; compiled
// without contraction of multiply and add.
#include "kernels/blockwise.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/reference/element.h"
#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {
namespace {

// The larger; a NaN does not count, as with fmaxf on the device.
float LargerMagnitude(float largest, float value) {
  return std::fabs(value) > largest ? std::fabs(value) : largest;
}

int Nf4Code(float x) {
  return static_cast<int>(
      std::ranges::count_if(kNf4Thresholds, [x](float t) { return x > t; }));
}

int Fp4Code(float x) {
  constexpr int kCodes[] = {0, 1, 6, 7, 4, 5, 2, 3};
  const auto rank = std::ranges::count_if(
      kFp4Thresholds, [x](float t) { return std::fabs(x) > t; });
  return kCodes[rank] + (x < 0 ? 8 : 0);
}

int FourBitCode(FourBitType type, float x) {
  return type == FourBitType::kNf4 ? Nf4Code(x) : Fp4Code(x);
}

// The nearest value of the map. On a midpoint the value where the halving
// search ended wins, as on the device.
uint8_t NearestDynamic(const float* map, float x) {
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
  int nearest = pivot;
  if (x > map[pivot]) {
    if (x > (map[high] + map[pivot]) * 0.5f) nearest = high;
  } else if (x < (map[low] + map[pivot]) * 0.5f) {
    nearest = low;
  }
  return static_cast<uint8_t>(nearest);
}

float QuantizeDynamicBlock(DynamicMap map, const float* x, int64_t n,
                           uint8_t* codes) {
  float scale = 0;
  for (int64_t i = 0; i < n; ++i) scale = LargerMagnitude(scale, x[i]);
  const float reciprocal = 1.0f / scale;
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = NearestDynamic(DynamicMapValues(map), x[i] * reciprocal);
  }
  return scale;
}

// Elements [begin, end), one block. The element after an odd end counts as 0.
float QuantizeBlock(const Quantize& op, int64_t begin, int64_t end) {
  float absmax = 0;
  for (int64_t i = begin; i < end; ++i) {
    absmax = LargerMagnitude(absmax, LoadElement(op.x, op.dtype, i));
  }
  const float reciprocal = 1.0f / absmax;
  for (int64_t i = begin; i < end; ++i) {
    const float scaled = LoadElement(op.x, op.dtype, i) * reciprocal;
    const int code = FourBitCode(op.type, scaled);
    if (i % 2 == 0) {
      const int padding = FourBitCode(op.type, 0.0f * reciprocal);
      op.codes[i / 2] = static_cast<uint8_t>(code << 4 | padding);
    } else {
      op.codes[i / 2] = static_cast<uint8_t>((op.codes[i / 2] & 0xf0) | code);
    }
  }
  return absmax;
}

void NestScales(const float* absmax, int64_t blocks,
                const MutableScales& scales) {
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += absmax[b];
  const float offset =
      blocks == 0 ? 0 : static_cast<float>(sum / static_cast<double>(blocks));
  *scales.offset = offset;
  for (int64_t b = 0; b < blocks; b += kNestedBlockSize) {
    const int64_t n = std::min<int64_t>(kNestedBlockSize, blocks - b);
    float centered[kNestedBlockSize];
    for (int64_t i = 0; i < n; ++i) centered[i] = absmax[b + i] - offset;
    scales.absmax_scale[b / kNestedBlockSize] = QuantizeDynamicBlock(
        DynamicMap::kSigned, centered, n, scales.absmax_codes + b);
  }
}

float ScaleOf(const ScalesView& scales, int64_t block) {
  if (scales.absmax != nullptr) return scales.absmax[block];
  const float product = kDynamicMapSigned[scales.absmax_codes[block]] *
                        scales.absmax_scale[block / kNestedBlockSize];
  return product + *scales.offset;
}

float RoundToFp16(float value) { return ToFloat(ToFp16(value)); }

}  // namespace

Result Reference::Do(const Launch& launch, const Quantize& op) const {
  const bool nested = op.scales.absmax == nullptr;
  float* absmax =
      nested ? static_cast<float*>(launch.workspace) : op.scales.absmax;
  for (int64_t b = 0; b < op.shape.num_blocks(); ++b) {
    const int64_t begin = b * op.shape.block_size;
    absmax[b] = QuantizeBlock(
        op, begin,
        std::min(begin + op.shape.block_size, op.shape.num_elements));
  }
  if (nested) NestScales(absmax, op.shape.num_blocks(), op.scales);
  return Result::kOk;
}

int64_t Reference::Room(const Quantize& op, int /*threads*/) const {
  return op.scales.absmax == nullptr ? op.shape.num_blocks() * 4 : 0;
}

Result Reference::Do(const Launch& /*launch*/, const Dequantize& op) const {
  const float* values = FourBitValues(op.type);
  for (int64_t r = 0; r < op.out.rows; ++r) {
    for (int64_t c = 0; c < op.out.columns; ++c) {
      const int64_t i = (op.row_begin + r) * op.out.columns + c;
      const int code = i % 2 == 0 ? op.codes[i / 2] >> 4 : op.codes[i / 2] & 15;
      const float value = values[code] * ScaleOf(op.scales, i / op.block_size);
      StoreElement(value, op.out.data, op.out.dtype, r * op.out.stride + c);
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const QuantizeInt8Rows& op) const {
  for (int64_t r = 0; r < op.x.rows; ++r) {
    const auto element = [&](int64_t c) {
      return RoundToFp16(
          LoadElement(op.x.data, op.x.dtype, r * op.x.stride + c));
    };
    float scale = 0;
    for (int64_t c = 0; c < op.x.columns; ++c) {
      scale = LargerMagnitude(scale, element(c));
    }
    op.scale[r] = scale;
    for (int64_t c = 0; c < op.x.columns; ++c) {
      const float product = element(c) * (127.0f / scale);
      op.codes[r * op.x.columns + c] =
          std::isnan(product) ? 0
                              : static_cast<int8_t>(std::nearbyint(product));
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const DequantizeInt8Rows& op) const {
  for (int64_t r = 0; r < op.out.rows; ++r) {
    for (int64_t c = 0; c < op.out.columns; ++c) {
      const float product =
          static_cast<float>(op.codes[r * op.out.columns + c]) * op.scale[r];
      StoreElement(product * kInt8Step, op.out.data, op.out.dtype,
                   r * op.out.stride + c);
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const QuantizeDynamic& op) const {
  for (int64_t b = 0; b < op.shape.num_blocks(); ++b) {
    const int64_t begin = b * op.shape.block_size;
    const int64_t n =
        std::min<int64_t>(op.shape.block_size, op.shape.num_elements - begin);
    op.scale[b] =
        QuantizeDynamicBlock(op.map, op.x + begin, n, op.codes + begin);
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const DequantizeDynamic& op) const {
  for (int64_t i = 0; i < op.shape.num_elements; ++i) {
    op.out[i] = DynamicMapValues(op.map)[op.codes[i]] *
                op.scale[i / op.shape.block_size];
  }
  return Result::kOk;
}

}  // namespace qlora::kernels
