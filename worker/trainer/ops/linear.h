// y = x W^T + bias [+ scale (dropout(x) A^T) B^T], W dense or NF4.
//
// W is brought into the compute type in a reused buffer where it is stored
// otherwise, then multiplied by the vendor's product. Everything is written
// into given buffers. Throws c10::Error (see torch_guard.h).
#pragma once

#include <cstdint>
#include <span>

#include "worker/trainer/model/weights.h"
#include "worker/trainer/ops/view.h"

namespace qlora::trainer {

// Buffers that all linears of a model share, elements of the compute type.
struct LinearScratch {
  // The largest weight.
  void* weight = nullptr;
  // bfloat16 only: rank * (in + out) of the largest.
  void* lora = nullptr;
  // bfloat16 only: tokens * hidden, for outputs added to the residual.
  void* output = nullptr;
  // With dropout only: tokens * the largest in.
  void* dropped = nullptr;
  // tokens * rank.
  void* narrow = nullptr;
};

// The dropout mask of one module: rows are keyed by where they stand in the
// job, not in the batch.
struct DropoutMask {
  float probability = 0;
  // Random per row of x (see RowKeys in dropout.h).
  std::span<const uint64_t> row_keys;
  // Number of the module in the model.
  uint32_t module = 0;
};

struct LoraWeights {
  int rank = 0;
  float scale = 1;
  // float32 [rank, in] and [out, rank].
  const float* a = nullptr;
  const float* b = nullptr;
  // Gradients, added to; null in forward.
  float* da = nullptr;
  float* db = nullptr;
  DropoutMask dropout;
};

struct LinearCall {
  LinearWeight weight;
  // rank 0: none.
  LoraWeights lora;
  LinearScratch scratch;
};

// W in `dtype`: itself, or converted or dequantized into `buffer`.
View MaterializeRows(const LinearWeight& weight, int64_t row_begin,
                     int64_t row_end, Dtype dtype, void* buffer);

// y = ..., or y += ... if `add`. With `add` y is float32 (the residual). xa
// [tokens, rank] receives dropout(x) A^T for the backward; unused if no LoRA.
void Linear(const LinearCall& call, const View& x, const View& y, bool add,
            void* xa);

// The adapter's gradients; dx (= or, if `add`, +=) the input's, unless
// dx.data is null. dx has the compute type.
void LinearBackward(const LinearCall& call, const View& x, const void* xa,
                    const View& dy, const View& dx, bool add);

// dw += dy^T x, db += column sums of dy (db null: no bias). Float32 sums.
void LinearWeightGrad(const LinearCall& call, const View& x, const View& dy,
                      float* dw, float* db);

}  // namespace qlora::trainer
