// Token rows and micro-batches: what the data pipeline gives the train loop.
#pragma once

#include <cstdint>
#include <vector>

namespace qlora::trainer {

inline constexpr int32_t kIgnoredLabel = -100;

// One sequence, or several documents packed into one.
struct Row {
  std::vector<int32_t> tokens;
  // Aligned with tokens, kIgnoredLabel where not trained; the model shifts:
  // position i predicts labels[i + 1] inside the same document.
  std::vector<int32_t> labels;
  // Lengths of the documents, in order; they sum to tokens.size().
  std::vector<int32_t> document_lengths;
};

// Rows laid end to end without padding: attention sees documents, not rows.
struct MicroBatch {
  // [T]
  std::vector<int32_t> tokens;
  // [T], already shifted: the token that position i has to predict, or
  // kIgnoredLabel (always so at the last position of a document).
  std::vector<int32_t> targets;
  // [T], from 0 in each document.
  std::vector<int32_t> positions;
  // Document d is [offsets[d], offsets[d + 1]); offsets.front() == 0,
  // offsets.back() == T.
  std::vector<int32_t> offsets;
  // Targets that are trained.
  int64_t trained_tokens = 0;
};

// Lays rows end to end.
MicroBatch MakeMicroBatch(const std::vector<const Row*>& rows);

}  // namespace qlora::trainer
