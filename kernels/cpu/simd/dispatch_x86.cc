#include "kernels/cpu/simd/kernels.h"

namespace qlora::kernels {
namespace baseline {
extern const KernelSet kKernels;
}
namespace avx2 {
extern const KernelSet kKernels;
}
namespace avx512 {
extern const KernelSet kKernels;
}

std::span<const NamedKernelSet> SupportedKernels() {
  static const NamedKernelSet kAll[] = {{"avx512", &avx512::kKernels},
                                        {"avx2", &avx2::kKernels},
                                        {"baseline", &baseline::kKernels}};
  static const size_t missing = [] {
    if (__builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      return 0;
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1
                                                                           : 2;
  }();
  return std::span(kAll).subspan(missing);
}

}  // namespace qlora::kernels
