#include "kernels/cpu/simd/kernels.h"

namespace qlora::kernels {
namespace baseline {
extern const KernelSet kKernels;
}

std::span<const NamedKernelSet> SupportedKernels() {
  static const NamedKernelSet kAll[] = {{"baseline", &baseline::kKernels}};
  return kAll;
}

}  // namespace qlora::kernels
