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
  // blockwise.cc
  Result Do(const Launch& launch, const Quantize& op) const override;
  Result Do(const Launch& launch, const Dequantize& op) const override;
  Result Do(const Launch& launch, const QuantizeInt8Rows& op) const override;
  Result Do(const Launch& launch, const DequantizeInt8Rows& op) const override;
  Result Do(const Launch& launch, const QuantizeDynamic& op) const override;
  Result Do(const Launch& launch, const DequantizeDynamic& op) const override;
  // rows.cc
  Result Do(const Launch& launch, const RmsNorm& op) const override;
  Result Do(const Launch& launch, const RmsNormBackward& op) const override;
  Result Do(const Launch& launch, const LayerNorm& op) const override;
  Result Do(const Launch& launch, const LayerNormBackward& op) const override;
  Result Do(const Launch& launch, const Rotary& op) const override;
  Result Do(const Launch& launch, const RotaryNormBackward& op) const override;
  Result Do(const Launch& launch, const GatedActivation& op) const override;
  Result Do(const Launch& launch,
            const GatedActivationBackward& op) const override;
  Result Do(const Launch& launch, const Dropout& op) const override;
  Result Do(const Launch& launch, const Embedding& op) const override;
  Result Do(const Launch& launch, const EmbeddingBackward& op) const override;
  Result Do(const Launch& launch, const Convert& op) const override;
  Result Do(const Launch& launch, const Add& op) const override;
  Result Do(const Launch& launch, const ColumnSums& op) const override;
  // cross_entropy.cc
  Result Do(const Launch& launch, const CrossEntropy& op) const override;
  // optimizer.cc
  Result Do(const Launch& launch, const AdamW& op) const override;
  Result Do(const Launch& launch, const SumOfSquares& op) const override;
  // attention.cc
  Result Do(const Launch& launch, const Attention& op) const override;
  Result Do(const Launch& launch, const AttentionBackward& op) const override;
  // head_loss.cc
  Result Do(const Launch& launch, const HeadLoss& op) const override;
  template <typename F>
  void ForPanels(const Launch& launch, const HeadLoss& op, const View& panel,
                 F f) const;
  void AddWeightGrad(const Launch& launch, const HeadLoss& op,
                     const View& dlogits, const View& x,
                     const View& panel) const;
  int64_t Room(const Quantize& op, int threads) const override;
  int64_t Room(const AdamW& op, int threads) const override;
  int64_t Room(const SumOfSquares& op, int threads) const override;
  int64_t Room(const Attention& op, int threads) const override;
  int64_t Room(const AttentionBackward& op, int threads) const override;
  int64_t Room(const HeadLoss& op, int threads) const override;

  const std::string_view name_;
  const KernelSet& rows_;
  const QuantizeKernels& quantize_;
  const Bf16Product* const product_;
};

}  // namespace qlora::kernels
