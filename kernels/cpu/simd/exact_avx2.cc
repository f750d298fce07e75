// x86-64 with AVX2 and FMA.
#define QLORA_SIMD_NAMESPACE avx2
#define QLORA_SIMD_WIDTH 8
#include "kernels/cpu/simd/exact_kernels.inc"
