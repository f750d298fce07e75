#include "kernels/cpu/cpu_backend.h"

namespace qlora::kernels {

Result CpuBackend::Do(const Launch& /*launch*/, const Quantize& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const Dequantize& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const QuantizeInt8Rows& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const DequantizeInt8Rows& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const QuantizeDynamic& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const DequantizeDynamic& /*op*/) const {
  return Result::kUnsupported;
}

int64_t CpuBackend::Room(const Quantize& /*op*/, int /*threads*/) const {
  return 0;
}

}  // namespace qlora::kernels
