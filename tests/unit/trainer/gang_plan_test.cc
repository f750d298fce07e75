#include "worker/trainer/gang_plan.h"

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/trainer/test_model.h"

namespace qlora::trainer {
namespace {

using ::testing::HasSubstr;

// What one rank plans with.
struct Device {
  int64_t budget = 0;
  bool fast_bfloat16 = false;
};

class GangPlanTest : public ::testing::Test {
 protected:
  GangPlanTest() {
    spec_.method = Method::kLora;
    spec_.data.max_seq_len = 256;
    spec_.train.global_batch_size = 32;
  }

  MemoryPlanInput Input(const Device& device, int ranks) {
    return {.model = &model_,
            .spec = &spec_,
            .world_size = ranks,
            .budget = device.budget,
            .fast_bfloat16 = device.fast_bfloat16,
            .threads = 1,
            .micro_batch_halvings = halvings_};
  }

  // What each rank gets when all plan at once.
  std::vector<absl::StatusOr<MemoryPlan>> Plan(
      const std::vector<Device>& devices) {
    const auto ranks = static_cast<int>(devices.size());
    auto gang = MakeThreadGang(ranks);
    std::vector<absl::StatusOr<MemoryPlan>> plans(ranks,
                                                  absl::UnknownError(""));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&, rank] {
        plans[rank] = PlanTogether(Input(devices[rank], ranks), *gang[rank]);
      });
    }
    for (std::thread& t : threads) t.join();
    return plans;
  }

  // Just enough for so many rows, all layers recomputed.
  int64_t BudgetFor(int rows, int ranks,
                    ComputeDtype dtype = ComputeDtype::kFloat32) {
    JobSpec spec = spec_;
    spec.train.compute_dtype = dtype;
    spec.train.micro_batch_size = rows;
    spec.train.activation_memory = ActivationMemory::kRecompute;
    MemoryPlanInput input = Input({}, ranks);
    input.spec = &spec;
    return PlanMemory(input).value().total();
  }

  const ModelDescription model_ = SmallModel(true, false);
  JobSpec spec_;
  int halvings_ = 0;
};

TEST_F(GangPlanTest, UnlikeBudgets_FewestRowsForAll) {
  const Device small{.budget = BudgetFor(2, 3)};
  ASSERT_EQ(PlanMemory(Input(small, 3)).value().micro_batch_size, 2);
  // 11 rows of a rank in two forwards.
  ASSERT_EQ(PlanMemory(Input({}, 3)).value().micro_batch_size, 6);
  const auto plans = Plan({Device{}, small, Device{}});
  for (const auto& plan : plans) {
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->micro_batch_size, 2);
  }
  // What a rank recomputes is its own affair.
  EXPECT_EQ(plans[0]->layers[0], LayerMemory::kKeep);
  EXPECT_EQ(plans[1]->layers[0], LayerMemory::kRecompute);
  EXPECT_LE(plans[1]->total(), small.budget);
}

TEST_F(GangPlanTest, OneRankWithoutFastBfloat16_AllComputeInFloat32) {
  const Device fast{.fast_bfloat16 = true};
  for (const auto& plan : Plan({fast, Device{}})) {
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->compute_dtype, ComputeDtype::kFloat32);
  }
  for (const auto& plan : Plan({fast, fast})) {
    EXPECT_EQ(plan.value().compute_dtype, ComputeDtype::kBfloat16);
  }
  spec_.train.compute_dtype = ComputeDtype::kBfloat16;
  for (const auto& plan : Plan({fast, Device{}})) {
    EXPECT_EQ(plan.value().compute_dtype, ComputeDtype::kBfloat16);
  }
}

// The budget that was enough in bfloat16 is planned anew in float32.
TEST_F(GangPlanTest, TypeThatIsTakenAway_TheRowsFitTheOther) {
  const Device fast{.budget = BudgetFor(4, 2, ComputeDtype::kBfloat16),
                    .fast_bfloat16 = true};
  EXPECT_EQ(PlanMemory(Input(fast, 2)).value().micro_batch_size, 4);
  const auto plans = Plan({Device{}, fast});
  EXPECT_EQ(plans[0].value().micro_batch_size, 2);
  EXPECT_EQ(plans[1].value().micro_batch_size, 2);
  EXPECT_LE(plans[1]->total(), fast.budget);
}

TEST_F(GangPlanTest, RankWithoutRoom_FailsAllAndIsNamed) {
  const Device tiny{.budget = BudgetFor(1, 2) - 1, .fast_bfloat16 = true};
  for (const auto& plan : Plan({Device{}, tiny})) {
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
    const std::string message(plan.status().message());
    EXPECT_THAT(message, HasSubstr("rank 1: a rank needs"));
    EXPECT_THAT(message, HasSubstr("train.compute_dtype: bfloat16"));
    // A larger device may have room.
    EXPECT_FALSE(IsLeastMemory(plan.status()));
  }
}

TEST_F(GangPlanTest, NothingLeftToSaveOnAnyRank_IsSaidAtOnce) {
  spec_.train.micro_batch_size = 1;
  const Device tight{.budget = BudgetFor(1, 2)};
  halvings_ = 1;
  // One rank recomputes everything, the other still can.
  for (const auto& plan : Plan({tight, Device{}})) {
    EXPECT_TRUE(plan.ok()) << plan.status();
  }
  for (const auto& plan : Plan({tight, tight})) {
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(IsLeastMemory(plan.status()));
    EXPECT_THAT(std::string(plan.status().message()),
                HasSubstr("nothing is left to save"));
  }
}

// The rows that the gang ran with are halved, whatever a rank planned alone.
TEST_F(GangPlanTest, HalvingsOfUnlikeBudgets_HoldLessEachTime) {
  const Device tight{.budget = BudgetFor(2, 2)};
  EXPECT_EQ(Plan({tight, Device{}})[1].value().micro_batch_size, 2);
  halvings_ = 1;
  const auto half = Plan({tight, Device{}});
  EXPECT_EQ(half[0].value().micro_batch_size, 1);
  EXPECT_EQ(half[1].value().micro_batch_size, 1);
  EXPECT_EQ(half[1]->layers[0], LayerMemory::kKeep);
  halvings_ = 2;
  EXPECT_NE(Plan({tight, Device{}})[1].value().layers[0], LayerMemory::kKeep);
}

// One has room for the rows that the user chose, the other for half of them.
TEST_F(GangPlanTest, HalvingsWhereTheChosenRowsDoNotFit_AreTheGangs) {
  const Device tight{.budget = BudgetFor(2, 2)};
  spec_.train.micro_batch_size = 4;
  halvings_ = 1;
  for (const auto& plan : Plan({tight, Device{}})) {
    EXPECT_EQ(plan.value().micro_batch_size, 2);
  }
}

TEST_F(GangPlanTest, OneRank_PlansAsAlone) {
  const auto plans = Plan({Device{.fast_bfloat16 = true}});
  const MemoryPlan alone =
      PlanMemory(Input({.fast_bfloat16 = true}, 1)).value();
  EXPECT_EQ(plans[0].value().micro_batch_size, alone.micro_batch_size);
  EXPECT_EQ(plans[0]->compute_dtype, ComputeDtype::kBfloat16);
}

}  // namespace
}  // namespace qlora::trainer
