// The ops, listed once. A new one is a struct in one of these headers and a
// name in one of these lists; checks.cc says what it rules out, and the
// backends that have it compute it.
#pragma once

#include "kernels/attention.h"
#include "kernels/blockwise.h"
#include "kernels/cross_entropy.h"
#include "kernels/head_loss.h"
#include "kernels/optimizer.h"
#include "kernels/rows.h"

// Of every backend, without workspace.
#define QLORA_PLAIN_OPS(X)   \
  X(Dequantize)              \
  X(QuantizeInt8Rows)        \
  X(DequantizeInt8Rows)      \
  X(QuantizeDynamic)         \
  X(DequantizeDynamic)       \
  X(RmsNorm)                 \
  X(RmsNormBackward)         \
  X(LayerNorm)               \
  X(LayerNormBackward)       \
  X(Rotary)                  \
  X(RotaryNormBackward)      \
  X(GatedActivation)         \
  X(GatedActivationBackward) \
  X(Dropout)                 \
  X(Embedding)               \
  X(EmbeddingBackward)       \
  X(Convert)                 \
  X(Add)                     \
  X(ColumnSums)              \
  X(CrossEntropy)

// Of every backend, with workspace.
#define QLORA_WORKSPACE_OPS(X) \
  X(Quantize)                  \
  X(AdamW)                     \
  X(SumOfSquares)

// Of the CPU's backends only, with workspace.
#define QLORA_CPU_OPS(X) \
  X(Attention)           \
  X(AttentionBackward)   \
  X(HeadLoss)

#define QLORA_ALL_OPS(X) \
  QLORA_PLAIN_OPS(X)     \
  QLORA_WORKSPACE_OPS(X) \
  QLORA_CPU_OPS(X)
