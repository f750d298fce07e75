// One rank's part of a batch, ready to compute. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/trainer/data/batch.h"
#include "worker/trainer/data/dataset.h"

namespace qlora::trainer {

struct RankBatch {
  std::vector<MicroBatch> micro_batches;
  // For each micro-batch, the numbers of its documents: unique within the
  // batch, and the same for any number of ranks.
  std::vector<std::vector<uint64_t>> document_ids;
  // Micro-batches of the rank that has most: all ranks run as many rounds.
  int64_t rounds = 0;
  // Of the whole batch.
  int64_t trained_tokens = 0;
  int64_t total_tokens = 0;
};

// Deals the rows with these numbers, a batch's, to the ranks and cuts this
// rank's into micro-batches.
RankBatch MakeRankBatch(const Dataset& data, const std::vector<int64_t>& batch,
                        int rank, int world_size, int micro_batch_size);

}  // namespace qlora::trainer
