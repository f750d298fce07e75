#include "kernels/cpu/cpu_backend.h"

namespace qlora::kernels {

Result CpuBackend::Do(const Launch& /*launch*/,
                      const CrossEntropy& /*op*/) const {
  return Result::kUnsupported;
}

}  // namespace qlora::kernels
