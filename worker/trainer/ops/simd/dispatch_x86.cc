#include "worker/trainer/ops/simd/kernels.h"

namespace qlora::trainer {
namespace baseline {
extern const KernelSet kKernels;
}
namespace avx2 {
extern const KernelSet kKernels;
}
namespace avx512 {
extern const KernelSet kKernels;
}

const KernelSet& SimdKernels() {
  static const KernelSet& chosen = [&]() -> const KernelSet& {
    if (__builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      return avx512::kKernels;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      return avx2::kKernels;
    }
    return baseline::kKernels;
  }();
  return chosen;
}

}  // namespace qlora::trainer
