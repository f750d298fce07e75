// Any processor: vectors of four floats.
#define QLORA_SIMD_NAMESPACE baseline
#define QLORA_SIMD_WIDTH 4
#include "kernels/cpu/simd/exact_kernels.inc"
