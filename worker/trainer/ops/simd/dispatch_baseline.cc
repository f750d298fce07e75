#include "worker/trainer/ops/simd/kernels.h"

namespace qlora::trainer {
namespace baseline {
extern const KernelSet kKernels;
}

std::span<const NamedKernelSet> SupportedKernels() {
  static const NamedKernelSet kAll[] = {{"baseline", &baseline::kKernels}};
  return kAll;
}

}  // namespace qlora::trainer
