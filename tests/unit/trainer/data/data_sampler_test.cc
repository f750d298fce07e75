#include <algorithm>
#include <numeric>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/data/batch.h"
#include "worker/trainer/data/packing.h"
#include "worker/trainer/data/sampler.h"

namespace qlora::trainer {
namespace {

using ::testing::ElementsAre;

constexpr int32_t kNo = kIgnoredLabel;

TEST(Permutation, SeedAndStream_FixTheOrderForEver) {
  // Recorded: a resume by a later version must find the same order.
  EXPECT_THAT(Permutation(8, 42, 0), ElementsAre(3, 6, 0, 7, 1, 2, 5, 4));
  EXPECT_EQ(Permutation(1000, 7, 1), Permutation(1000, 7, 1));
  EXPECT_NE(Permutation(1000, 7, 1), Permutation(1000, 7, 2));
  EXPECT_NE(Permutation(1000, 7, 1), Permutation(1000, 8, 1));
  EXPECT_TRUE(Permutation(0, 1, 1).empty());
  EXPECT_THAT(Permutation(1, 1, 1), ElementsAre(0));
}

TEST(Permutation, EveryPlace_IsEquallyLikely) {
  constexpr int kDraws = 20000;
  constexpr int kSize = 5;
  int counts[kSize][kSize] = {};
  for (int draw = 0; draw < kDraws; ++draw) {
    const std::vector<int64_t> order = Permutation(kSize, 1, draw);
    for (int i = 0; i < kSize; ++i) ++counts[i][order[i]];
  }
  for (const auto& row : counts) {
    for (const int count : row) EXPECT_NEAR(count, kDraws / kSize, 300);
  }
}

TEST(BatchSampler, Epoch_DealsEachRowOnceAndALastSmallerBatch) {
  BatchSampler sampler(10, 4, 3, true);
  EXPECT_EQ(sampler.steps_per_epoch(), 3);
  DataCursor cursor;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::multiset<int64_t> seen;
    for (const size_t size : {4, 4, 2}) {
      EXPECT_EQ(cursor.epoch, epoch);
      const std::vector<int64_t> batch = sampler.NextBatch(&cursor);
      EXPECT_EQ(batch.size(), size);
      seen.insert(batch.begin(), batch.end());
    }
    EXPECT_EQ(seen.size(), 10);
    EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(), 10);
  }
  EXPECT_EQ(cursor, (DataCursor{.epoch = 3, .row = 0}));
}

TEST(BatchSampler, NoShuffle_KeepsFileOrderInEveryEpoch) {
  BatchSampler sampler(3, 2, 3, false);
  DataCursor cursor;
  for (int epoch = 0; epoch < 2; ++epoch) {
    EXPECT_THAT(sampler.NextBatch(&cursor), ElementsAre(0, 1));
    EXPECT_THAT(sampler.NextBatch(&cursor), ElementsAre(2));
  }
}

TEST(BatchSampler, Cursor_ContinuesWhereItWasSaved) {
  BatchSampler whole(37, 5, 11, true);
  DataCursor cursor;
  std::vector<std::vector<int64_t>> batches;
  std::vector<DataCursor> cursors = {cursor};
  for (int step = 0; step < 30; ++step) {
    batches.push_back(whole.NextBatch(&cursor));
    cursors.push_back(cursor);
  }
  for (int resumed = 0; resumed < 30; ++resumed) {
    EXPECT_EQ(whole.CursorAfter(resumed), cursors[resumed]);
    BatchSampler other(37, 5, 11, true);
    DataCursor at = cursors[resumed];
    EXPECT_EQ(other.NextBatch(&at), batches[resumed]);
  }
}

TEST(BatchSampler, TotalSteps_FollowEpochsOrMaxSteps) {
  const BatchSampler sampler(10, 4, 0, true);
  EXPECT_EQ(sampler.TotalSteps(1, 0), 3);
  EXPECT_EQ(sampler.TotalSteps(2.5, 0), 8);
  EXPECT_EQ(sampler.TotalSteps(0.01, 0), 1);
  EXPECT_EQ(sampler.TotalSteps(1, 100), 100);
  EXPECT_DOUBLE_EQ(sampler.EpochAt({.epoch = 2, .row = 5}), 2.5);
}

TEST(RowsOfRank, AllWorldSizes_ShareTheBatchWithoutOverlap) {
  std::vector<int64_t> batch(7);
  std::iota(batch.begin(), batch.end(), 100);
  for (int world = 1; world <= 9; ++world) {
    std::set<int64_t> rows;
    for (int rank = 0; rank < world; ++rank) {
      const std::vector<BatchRow> mine = RowsOfRank(batch, rank, world);
      for (const BatchRow& row : mine) {
        EXPECT_EQ(row.row, batch[row.place]);
        EXPECT_EQ(row.place % world, rank);
        EXPECT_TRUE(rows.insert(row.row).second);
      }
      for (int micro = 1; micro <= 4; ++micro) {
        const auto cut = CutMicroBatches(mine, micro);
        size_t total = 0;
        for (const auto& part : cut) total += part.size();
        EXPECT_EQ(total, mine.size());
        const int64_t rounds = MicroBatchRounds(7, world, micro);
        EXPECT_LE(static_cast<int64_t>(cut.size()), rounds);
        if (rank == 0) {
          EXPECT_EQ(static_cast<int64_t>(cut.size()), rounds);
        }
      }
    }
    EXPECT_EQ(rows.size(), batch.size());
  }
}

TEST(MakeMicroBatch, PackedRows_TargetsStayInsideDocuments) {
  const Row first = {.tokens = {1, 2, 3, 4, 5},
                     .labels = {1, 2, kNo, 4, 5},
                     .document_lengths = {3, 2}};
  const Row second = {
      .tokens = {6, 7}, .labels = {kNo, 7}, .document_lengths = {2}};
  const MicroBatch batch = MakeMicroBatch({&first, &second});
  EXPECT_THAT(batch.tokens, ElementsAre(1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(batch.targets, ElementsAre(2, kNo, kNo, 5, kNo, 7, kNo));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0, 1, 0, 1));
  EXPECT_THAT(batch.offsets, ElementsAre(0, 3, 5, 7));
  EXPECT_EQ(batch.trained_tokens, 3);
  EXPECT_THAT(MakeMicroBatch({}).offsets, ElementsAre(0));
}

TEST(PackFirstFit, Documents_GoToTheFirstRowWithRoom) {
  EXPECT_THAT(PackFirstFit({6, 5, 4, 5, 10, 1}, 10),
              ElementsAre(ElementsAre(0, 2), ElementsAre(1, 3), ElementsAre(4),
                          ElementsAre(5)));
  EXPECT_TRUE(PackFirstFit({}, 10).empty());
}

TEST(PackFirstFit, ManyDocuments_EachOnceAndNoRowOverfull) {
  std::vector<int64_t> lengths;
  for (const int64_t x : Permutation(5000, 5, 0)) lengths.push_back(x % 97 + 1);
  const auto rows = PackFirstFit(lengths, 256);
  std::vector<int> seen(lengths.size());
  int64_t previous = -1;
  for (const std::vector<int64_t>& row : rows) {
    int64_t sum = 0;
    for (const int64_t d : row) {
      sum += lengths[d];
      ++seen[d];
    }
    EXPECT_LE(sum, 256);
    EXPECT_GT(row[0], previous);
    previous = row[0];
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), 5000);
  const int64_t total = std::accumulate(lengths.begin(), lengths.end(), 0L);
  EXPECT_LT(rows.size(), 1.02 * total / 256);
}

}  // namespace
}  // namespace qlora::trainer
