// As cuda_runtime.h beside it.
#pragma once

#include "kernels/reference/element.h"

using __nv_bfloat16 = qlora::kernels::Bf16;
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return x == x ? qlora::kernels::ToBf16(x) : __nv_bfloat16{0x7fff};
}
