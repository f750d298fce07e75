#include "kernels/cpu/cpu_backend.h"

namespace qlora::kernels {

Result CpuBackend::Do(const Launch& /*launch*/, const HeadLoss& /*op*/) const {
  return Result::kUnsupported;
}

int64_t CpuBackend::Room(const HeadLoss& /*op*/, int /*threads*/) const {
  return 0;
}

}  // namespace qlora::kernels
