// x86-64 with AVX-512 F, BW, DQ and VL.
#define QLORA_SIMD_NAMESPACE avx512
#define QLORA_SIMD_WIDTH 16
#include "kernels/cpu/simd/exact_kernels.inc"
