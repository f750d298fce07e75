#include "worker/trainer/batches.h"

#include "worker/trainer/data/sampler.h"

namespace qlora::trainer {

RankBatch MakeRankBatch(const Dataset& data, const std::vector<int64_t>& batch,
                        int rank, int world_size, int micro_batch_size) {
  RankBatch result;
  std::vector<Row> rows;
  for (const int64_t number : batch) {
    rows.push_back(data.row(number));
    result.trained_tokens += MakeMicroBatch({&rows.back()}).trained_tokens;
    result.total_tokens += static_cast<int64_t>(rows.back().tokens.size());
  }
  result.rounds = MicroBatchRounds(static_cast<int64_t>(batch.size()),
                                   world_size, micro_batch_size);
  for (const std::vector<BatchRow>& group :
       CutMicroBatches(RowsOfRank(batch, rank, world_size), micro_batch_size)) {
    std::vector<const Row*> micro;
    std::vector<uint64_t>& ids = result.document_ids.emplace_back();
    for (const BatchRow& row : group) {
      micro.push_back(&rows[row.place]);
      for (uint64_t d = 0; d < micro.back()->document_lengths.size(); ++d) {
        ids.push_back(static_cast<uint64_t>(row.place) << 32 | d);
      }
    }
    result.micro_batches.push_back(MakeMicroBatch(micro));
  }
  return result;
}

}  // namespace qlora::trainer
