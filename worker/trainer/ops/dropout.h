// Counter-based dropout: which elements fall out depends on the seed, the step,
// the document, the position in it, the module and the column, and on nothing
// else, so not on how rows are dealt to ranks and micro-batches.
#pragma once

#include <cstdint>
#include <span>

#include "worker/trainer/ops/view.h"

namespace qlora::trainer {

// SplitMix64's finalizer of a ^ mixed b.
uint64_t MixKeys(uint64_t a, uint64_t b);

// keys[t] for the rows of documents [offsets[d], offsets[d + 1]).
void FillRowKeys(uint64_t seed, uint64_t step,
                 std::span<const uint64_t> document_ids,
                 std::span<const int32_t> offsets, std::span<uint64_t> keys);

// out = x with elements dropped with `probability`, the rest scaled by
// 1 / (1 - probability); out += if `add`. The same call gives the same mask.
void ApplyDropout(const View& x, std::span<const uint64_t> row_keys,
                  uint32_t module, float probability, bool add,
                  const View& out);

}  // namespace qlora::trainer
