#include "worker/trainer/generation_plan.h"

#include <string>

#include "common/spec/memory_plan.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/trainer/test_model.h"

namespace qlora::trainer {
namespace {

using ::testing::HasSubstr;

class GenerationPlanTest : public ::testing::Test {
 protected:
  GenerationPlanTest() {
    needs_.model = &model_;
    needs_.positions = 64;
    needs_.adapter_bytes = 1000;
    // More than what loading takes for a while.
    needs_.workspace_bytes = 1 << 20;
  }

  // What is needed with the base held like this.
  int64_t Bytes(const SlabOptions& slabs) const {
    return MakeBlockLayout(model_, slabs).bytes * model_.num_layers +
           MakeOuterLayout(model_, slabs).bytes + needs_.adapter_bytes +
           needs_.workspace_bytes + kRuntimeBytes;
  }

  ModelDescription model_ = SmallModel(true, false);
  GenerationNeeds needs_;
};

TEST_F(GenerationPlanTest, Nf4_StaysPackedWhereOnlyThatFits) {
  const int64_t packed = Bytes({.linear = WeightFormat::kNf4});
  const int64_t dense = Bytes({.linear = WeightFormat::kFloat32});
  ASSERT_LT(packed, dense);
  for (const int64_t budget : {int64_t{0}, dense}) {
    needs_.budget = budget;
    const auto slabs = PlanGeneration(needs_);
    ASSERT_TRUE(slabs.ok()) << slabs.status();
    EXPECT_EQ(slabs->linear, WeightFormat::kFloat32);
    EXPECT_TRUE(slabs->nf4_values);
  }
  for (const int64_t budget : {dense - 1, packed}) {
    needs_.budget = budget;
    const auto slabs = PlanGeneration(needs_);
    ASSERT_TRUE(slabs.ok()) << slabs.status();
    EXPECT_EQ(slabs->linear, WeightFormat::kNf4);
    EXPECT_FALSE(slabs->nf4_values);
  }
}

TEST_F(GenerationPlanTest, LessThanThat_IsRefusedWithTheFigures) {
  needs_.budget = Bytes({.linear = WeightFormat::kNf4}) - 1;
  const absl::Status refused = PlanGeneration(needs_).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("generating texts of up to 64 tokens needs 201 MiB, "
                        "and may use 201 MiB: base 0 MiB"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("keys and values"));
}

TEST_F(GenerationPlanTest, DenseBase_HasOneForm) {
  needs_.slabs.linear = WeightFormat::kFloat32;
  needs_.budget = Bytes(needs_.slabs);
  const auto slabs = PlanGeneration(needs_);
  ASSERT_TRUE(slabs.ok()) << slabs.status();
  EXPECT_FALSE(slabs->nf4_values);
  --needs_.budget;
  EXPECT_TRUE(absl::IsResourceExhausted(PlanGeneration(needs_).status()));
}

// A tensor is read whole, as float32, before there is a workspace.
TEST_F(GenerationPlanTest, Loading_CountsWhereItTakesMore) {
  model_.vocab_size = 5000;
  needs_.workspace_bytes = 100'000;
  const int64_t loading = 2 * 4 * model_.vocab_size * model_.hidden_size;
  needs_.budget = Bytes(needs_.slabs) - needs_.workspace_bytes + loading;
  EXPECT_TRUE(PlanGeneration(needs_).ok());
  --needs_.budget;
  EXPECT_TRUE(absl::IsResourceExhausted(PlanGeneration(needs_).status()));
}

}  // namespace
}  // namespace qlora::trainer
