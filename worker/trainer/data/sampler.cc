#include "worker/trainer/data/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace qlora::trainer {
namespace {

uint64_t SplitMix64(uint64_t* state) {
  *state += 0x9e3779b97f4a7c15;
  uint64_t z = *state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Uniform in [0, bound): draws again instead of folding the remainder in.
uint64_t Below(uint64_t bound, uint64_t* state) {
  const uint64_t rejected = -bound % bound;
  uint64_t x;
  do {
    x = SplitMix64(state);
  } while (x < rejected);
  return x % bound;
}

}  // namespace

std::vector<int64_t> Permutation(int64_t size, uint64_t seed, uint64_t stream) {
  std::vector<int64_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  uint64_t state = seed;
  state = SplitMix64(&state) ^ stream;
  for (int64_t i = size - 1; i > 0; --i) {
    std::swap(order[i], order[Below(i + 1, &state)]);
  }
  return order;
}

BatchSampler::BatchSampler(int64_t num_rows, int global_batch_size,
                           uint64_t seed, bool shuffle)
    : num_rows_(num_rows),
      global_batch_size_(global_batch_size),
      seed_(seed),
      shuffle_(shuffle) {}

int64_t BatchSampler::steps_per_epoch() const {
  return (num_rows_ + global_batch_size_ - 1) / global_batch_size_;
}

int64_t BatchSampler::TotalSteps(double epochs, int64_t max_steps) const {
  if (max_steps > 0) return max_steps;
  const double steps = std::ceil(epochs * steps_per_epoch());
  return std::max<int64_t>(1, static_cast<int64_t>(steps));
}

double BatchSampler::EpochAt(const DataCursor& cursor) const {
  return cursor.epoch + static_cast<double>(cursor.row) / num_rows_;
}

DataCursor BatchSampler::CursorAfter(int64_t steps) const {
  return {.epoch = steps / steps_per_epoch(),
          .row = steps % steps_per_epoch() * global_batch_size_};
}

std::vector<int64_t> BatchSampler::NextBatch(DataCursor* cursor) {
  if (order_epoch_ != cursor->epoch) {
    if (shuffle_) {
      order_ = Permutation(num_rows_, seed_, cursor->epoch);
    } else if (order_.empty()) {
      order_.resize(num_rows_);
      std::iota(order_.begin(), order_.end(), 0);
    }
    order_epoch_ = cursor->epoch;
  }
  const int64_t end = std::min(cursor->row + global_batch_size_, num_rows_);
  std::vector<int64_t> batch(order_.begin() + cursor->row,
                             order_.begin() + end);
  *cursor = end == num_rows_ ? DataCursor{.epoch = cursor->epoch + 1, .row = 0}
                             : DataCursor{.epoch = cursor->epoch, .row = end};
  return batch;
}

std::vector<BatchRow> RowsOfRank(const std::vector<int64_t>& batch, int rank,
                                 int world) {
  std::vector<BatchRow> rows;
  for (size_t i = rank; i < batch.size(); i += world) {
    rows.push_back({.row = batch[i], .place = static_cast<int64_t>(i)});
  }
  return rows;
}

std::vector<std::vector<BatchRow>> CutMicroBatches(
    const std::vector<BatchRow>& rows, int micro_batch_size) {
  std::vector<std::vector<BatchRow>> out;
  for (size_t i = 0; i < rows.size(); i += micro_batch_size) {
    const size_t end = std::min(rows.size(), i + micro_batch_size);
    out.emplace_back(rows.begin() + i, rows.begin() + end);
  }
  return out;
}

int64_t MicroBatchRounds(int64_t batch_rows, int world, int micro_batch_size) {
  const int64_t most = (batch_rows + world - 1) / world;
  return (most + micro_batch_size - 1) / micro_batch_size;
}

}  // namespace qlora::trainer
