// The ops on a CPU: split over ParallelFor here, computed by the kernels of one
// instruction set.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/cpu/bf16_product.h"
#include "kernels/cpu/quantize_kernels.h"
#include "kernels/cpu/simd/kernels.h"

namespace qlora::kernels {

class CpuBackend final : public Backend {
 public:
  // Without `product` bfloat16's attention computes in float32.
  CpuBackend(std::string_view name, const KernelSet& rows,
             const QuantizeKernels& quantize, const Bf16Product* product)
      : name_(name), rows_(rows), quantize_(quantize), product_(product) {}

  std::string_view name() const override { return name_; }

 private:
  QLORA_PLAIN_OPS(QLORA_HAS_OP)
  QLORA_WORKSPACE_OPS(QLORA_HAS_OP_AND_ROOM)
  QLORA_CPU_OPS(QLORA_HAS_OP_AND_ROOM)

  // head_loss.cc
  template <typename F>
  void ForPanels(const Launch& launch, const HeadLoss& op, const View& panel,
                 F f) const;
  void AddWeightGrad(const Launch& launch, const HeadLoss& op,
                     const View& dlogits, const View& x,
                     const View& panel) const;

  const std::string_view name_;
  const KernelSet& rows_;
  const QuantizeKernels& quantize_;
  const Bf16Product* const product_;
};

}  // namespace qlora::kernels
