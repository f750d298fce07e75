#include "kernels/cpu/cpu_backend.h"

namespace qlora::kernels {

Result CpuBackend::Do(const Launch& /*launch*/, const RmsNorm& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const RmsNormBackward& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/, const LayerNorm& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const LayerNormBackward& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/, const Rotary& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const RotaryNormBackward& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const GatedActivation& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const GatedActivationBackward& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/, const Dropout& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/, const Embedding& /*op*/) const {
  return Result::kUnsupported;
}

Result CpuBackend::Do(const Launch& /*launch*/,
                      const EmbeddingBackward& /*op*/) const {
  return Result::kUnsupported;
}

}  // namespace qlora::kernels
