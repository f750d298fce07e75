// Which rows a step trains: a deterministic order out of (seed, epoch) that
// depends neither on the number of ranks nor on the C++ library.
//
// Values and pure functions; copy freely.
#pragma once

#include <cstdint>
#include <vector>

namespace qlora::trainer {

// The next row to train: `row` is a position in the order of `epoch`, from 0.
// It is all that a checkpoint needs to know of the data.
struct DataCursor {
  int64_t epoch = 0;
  int64_t row = 0;
  bool operator==(const DataCursor&) const = default;
};

// A permutation of [0, size): Fisher-Yates driven by splitmix64.
std::vector<int64_t> Permutation(int64_t size, uint64_t seed, uint64_t stream);

// Deals an epoch's rows in batches. Batches do not cross epochs: the last one
// of an epoch may be smaller.
class BatchSampler {
 public:
  // num_rows and global_batch_size are at least 1. shuffle == false: file
  // order in every epoch.
  BatchSampler(int64_t num_rows, int global_batch_size, uint64_t seed,
               bool shuffle);

  int64_t steps_per_epoch() const;
  // max_steps if that is not 0, else epochs (may be fractional) rounded up to
  // whole steps; at least 1.
  int64_t TotalSteps(double epochs, int64_t max_steps) const;
  // Epochs behind the cursor, as a fraction, for reports.
  double EpochAt(const DataCursor& cursor) const;
  // The cursor after `steps` steps from the start.
  DataCursor CursorAfter(int64_t steps) const;

  // Rows of the next batch, in order; advances the cursor. Epochs follow each
  // other without end.
  std::vector<int64_t> NextBatch(DataCursor* cursor);

 private:
  const int64_t num_rows_;
  const int64_t global_batch_size_;
  const uint64_t seed_;
  const bool shuffle_;
  // The order of order_epoch_; -1: none yet.
  int64_t order_epoch_ = -1;
  std::vector<int64_t> order_;
};

// A row of a batch: the row's number in the dataset and its place in the
// batch, which is unique within the step whatever the number of ranks.
struct BatchRow {
  int64_t row = 0;
  int64_t place = 0;
};

// The rows that `rank` of `world` trains: round-robin, so ranks may get unequal
// numbers or none.
std::vector<BatchRow> RowsOfRank(const std::vector<int64_t>& batch, int rank,
                                 int world);

// Cuts rows in groups of micro_batch_size; the last may be smaller.
std::vector<std::vector<BatchRow>> CutMicroBatches(
    const std::vector<BatchRow>& rows, int micro_batch_size);

// Micro-batches that the rank with the most rows has: how often every rank has
// to join the collectives of a step.
int64_t MicroBatchRounds(int64_t batch_rows, int world, int micro_batch_size);

}  // namespace qlora::trainer
