#include "kernels/cpu/cpu_backend.h"

namespace qlora::kernels {

Result CpuBackend::Do(const Launch& /*launch*/, const Attention& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const AttentionBackward& /*op*/) const {
  return Result::kUnsupported;
}

int64_t CpuBackend::Room(const Attention& /*op*/, int /*threads*/) const {
  return 0;
}

int64_t CpuBackend::Room(const AttentionBackward& /*op*/,
                         int /*threads*/) const {
  return 0;
}

}  // namespace qlora::kernels
