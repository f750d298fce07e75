// Elements of any type as float32, for the plain loops.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/types.h"

namespace qlora::kernels {

// To nearest, ties to even; a NaN keeps its upper bits and becomes quiet.
inline Bf16 ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// To nearest, ties to even, by scaling to an integer of half's precision. There
// is one NaN per sign.
inline Fp16 ToFp16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const auto with_sign = [sign](int bits) {
    return Fp16{static_cast<uint16_t>(sign | bits)};
  };
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return with_sign(0x7e00);
  if (magnitude >= 65520.0f) return with_sign(0x7c00);
  const int exponent = magnitude >= 0x1p-14f ? std::ilogb(magnitude) : -14;
  const float steps = std::nearbyint(std::ldexp(magnitude, 10 - exponent));
  // Normal numbers carry the hidden bit, which adds one to the exponent.
  return with_sign(((exponent + 14) << 10) + static_cast<int>(steps));
}

inline float ToFloat(float value) { return value; }

inline float ToFloat(Bf16 value) {
  return std::bit_cast<float>(uint32_t{value.bits} << 16);
}

inline float ToFloat(Fp16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const int exponent = value.bits >> 10 & 31;
  const int mantissa = value.bits & 1023;
  if (exponent == 31) {
    return std::bit_cast<float>(sign | 0x7f800000 |
                                static_cast<uint32_t>(mantissa) << 13);
  }
  const float magnitude =
      exponent == 0
          ? std::ldexp(static_cast<float>(mantissa), -24)
          : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  return sign != 0 ? -magnitude : magnitude;
}

inline float LoadElement(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<const float*>(data)[i];
    case Dtype::kBfloat16:
      return ToFloat(static_cast<const Bf16*>(data)[i]);
    case Dtype::kFloat16:
      break;
  }
  return ToFloat(static_cast<const Fp16*>(data)[i]);
}

inline void StoreElement(float value, void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      static_cast<float*>(data)[i] = value;
      return;
    case Dtype::kBfloat16:
      static_cast<Bf16*>(data)[i] = ToBf16(value);
      return;
    case Dtype::kFloat16:
      static_cast<Fp16*>(data)[i] = ToFp16(value);
  }
}

inline float Get(const View& v, int64_t r, int64_t c) {
  return LoadElement(v.data, v.dtype, r * v.stride + c);
}

inline void Set(const View& v, int64_t r, int64_t c, float value) {
  StoreElement(value, v.data, v.dtype, r * v.stride + c);
}

}  // namespace qlora::kernels
