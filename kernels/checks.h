// The one check of every op's arguments, for every backend and build.
#pragma once

#include "kernels/attention.h"
#include "kernels/blockwise.h"
#include "kernels/cross_entropy.h"
#include "kernels/head_loss.h"
#include "kernels/optimizer.h"
#include "kernels/rows.h"
#include "kernels/types.h"

namespace qlora::kernels {

// False for what the op's comment rules out, as far as the host can see it:
// nothing behind a pointer is read but what is said to be on the host.
bool IsValid(const Quantize& op);
bool IsValid(const Dequantize& op);
bool IsValid(const QuantizeInt8Rows& op);
bool IsValid(const DequantizeInt8Rows& op);
bool IsValid(const QuantizeDynamic& op);
bool IsValid(const DequantizeDynamic& op);
bool IsValid(const RmsNorm& op);
bool IsValid(const RmsNormBackward& op);
bool IsValid(const LayerNorm& op);
bool IsValid(const LayerNormBackward& op);
bool IsValid(const Rotary& op);
bool IsValid(const RotaryNormBackward& op);
bool IsValid(const GatedActivation& op);
bool IsValid(const GatedActivationBackward& op);
bool IsValid(const Dropout& op);
bool IsValid(const Embedding& op);
bool IsValid(const EmbeddingBackward& op);
bool IsValid(const Convert& op);
bool IsValid(const Add& op);
bool IsValid(const ColumnSums& op);
bool IsValid(const CrossEntropy& op);
bool IsValid(const AdamW& op);
bool IsValid(const SumOfSquares& op);
bool IsValid(const Attention& op);
bool IsValid(const AttentionBackward& op);
bool IsValid(const HeadLoss& op);

// The launch brings `bytes` of aligned workspace, and threads >= 1.
bool HasRoom(const Launch& launch, int64_t bytes);

}  // namespace qlora::kernels
