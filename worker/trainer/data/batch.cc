#include "worker/trainer/data/batch.h"

#include <cstddef>

namespace qlora::trainer {

MicroBatch MakeMicroBatch(const std::vector<const Row*>& rows) {
  MicroBatch batch;
  batch.offsets.push_back(0);
  for (const Row* row : rows) {
    size_t begin = 0;
    for (const int32_t length : row->document_lengths) {
      for (int32_t i = 0; i < length; ++i) {
        const int32_t target =
            i + 1 < length ? row->labels[begin + i + 1] : kIgnoredLabel;
        batch.tokens.push_back(row->tokens[begin + i]);
        batch.targets.push_back(target);
        batch.positions.push_back(i);
        batch.trained_tokens += target != kIgnoredLabel;
      }
      begin += length;
      batch.offsets.push_back(static_cast<int32_t>(batch.tokens.size()));
    }
  }
  return batch;
}

}  // namespace qlora::trainer
