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
  // The largest weight; in bfloat16 also what `lora` holds, if that is more.
  void* weight = nullptr;
  // bfloat16 only: rank * the largest in or out.
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

// A dense W as it is stored.
View StoredTable(const LinearWeight& weight);

// W in `dtype`: itself, or converted or dequantized into `buffer`.
View MaterializeRows(const LinearWeight& weight, int64_t row_begin,
                     int64_t row_end, Dtype dtype, void* buffer);

// xa [tokens, rank] = dropout(x) A^T. Without an adapter nothing.
void AdapterInputProduct(const LinearCall& call, const View& x, void* xa);
// y = ..., or y += ... if `add`; y is then float32 (the residual). Takes xa.
void LinearProduct(const LinearCall& call, const View& x, const View& y,
                   bool add, const void* xa);

// The backward in three parts, in this order, because the input may have to be
// recomputed out of what the second gives. Without an adapter the first and
// the last do nothing. A linear's parts may not be mixed with another's.
//
// dB, and dY B into scratch.
void AdapterOutputGrad(const LinearCall& call, const void* xa, const View& dy);
// dx = (or, if `add`, +=) the gradient of the input; of the compute type.
void LinearInputGrad(const LinearCall& call, const View& dy, const View& dx,
                     bool add);
// dA; may come before LinearInputGrad.
void AdapterInputGrad(const LinearCall& call, const View& x);

// dw += dy^T x, db += column sums of dy (db null: no bias). Float32 sums.
void LinearWeightGrad(const LinearCall& call, const View& x, const View& dy,
                      float* dw, float* db);

}  // namespace qlora::trainer
