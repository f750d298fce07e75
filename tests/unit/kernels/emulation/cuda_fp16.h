// As cuda_runtime.h beside it.
#pragma once

#include "kernels/reference/element.h"

using __half = qlora::kernels::Fp16;
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) {
  const float value = qlora::kernels::ToFloat(x);
  return value == value ? value : std::bit_cast<float>(0x7fffffffu);
}
inline __half __float2half_rn(float x) {
  return x == x ? qlora::kernels::ToFp16(x) : __half{0x7fff};
}
