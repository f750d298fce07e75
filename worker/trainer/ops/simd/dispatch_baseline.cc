#include "worker/trainer/ops/simd/kernels.h"

namespace qlora::trainer {
namespace baseline {
extern const KernelSet kKernels;
}

const KernelSet& SimdKernels() { return baseline::kKernels; }

}  // namespace qlora::trainer
