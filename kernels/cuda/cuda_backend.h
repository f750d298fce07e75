// The ops on NVIDIA devices, compute capability 8.0 and up. Ops are queued on
// Launch::stream of the current device; they allocate nothing and wait for
// nothing, so they can be captured in a graph. All types are there. Attention
// and the head are not: those stay with LibTorch's kernels.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/backend.h"

namespace qlora::kernels {

class Cuda final : public Backend {
 public:
  std::string_view name() const override { return "cuda"; }

 private:
  Result Do(const Launch& launch, const Quantize& op) const override;
  Result Do(const Launch& launch, const Dequantize& op) const override;
  Result Do(const Launch& launch, const QuantizeInt8Rows& op) const override;
  Result Do(const Launch& launch, const DequantizeInt8Rows& op) const override;
  Result Do(const Launch& launch, const QuantizeDynamic& op) const override;
  Result Do(const Launch& launch, const DequantizeDynamic& op) const override;
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
  Result Do(const Launch& launch, const CrossEntropy& op) const override;
  Result Do(const Launch& launch, const AdamW& op) const override;
  Result Do(const Launch& launch, const SumOfSquares& op) const override;

  int64_t Room(const Quantize& op, int threads) const override;
  int64_t Room(const AdamW& op, int threads) const override;
  int64_t Room(const SumOfSquares& op, int threads) const override;
};

}  // namespace qlora::kernels
