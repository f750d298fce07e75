#include "kernels/cpu/cpu_backend.h"

namespace qlora::kernels {

Result CpuBackend::Do(const Launch& /*launch*/, const AdamW& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const SumOfSquares& /*op*/) const {
  return Result::kUnsupported;
}

int64_t CpuBackend::Room(const AdamW& /*op*/, int /*threads*/) const {
  return 0;
}

int64_t CpuBackend::Room(const SumOfSquares& /*op*/, int /*threads*/) const {
  return 0;
}

}  // namespace qlora::kernels
