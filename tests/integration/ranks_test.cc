// What must not depend on the number of ranks, on chance, or on interruptions.
#include <signal.h>

#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/base/sha256.h"
#include "gmock/gmock.h"
#include "tests/integration/trainer_fixture.h"
#include "tests/shared_data.h"

namespace qlora::trainer {
namespace {

constexpr char kJob[] = R"(
apiVersion: qlora/v1
name: ranks
model: {base: stories260K}
method: METHOD
LORA
data:
  train: [{path: rows.jsonl, format: tokens}]
  max_seq_len: 65
  packing: false
train:
  max_steps: STEPS
  global_batch_size: BATCH
  micro_batch_size: 1
  learning_rate: 1e-3
  warmup_ratio: 0.1
  compute_dtype: float32
checkpoint: {every: EVERY}
)";

struct JobOptions {
  std::string method = "qlora";
  int steps = 20;
  int batch = 5;
  int every = 1000;
  double dropout = 0.1;
};

class RanksTest : public TrainerFixture {
 protected:
  void SetUp() override {
    TrainerFixture::SetUp();
    if (!IsSkipped()) WriteShakespeareRows("rows.jsonl", 64, 65);
  }

  v1::TrainerTask Job(const JobOptions& options, int ranks) {
    const std::string lora =
        options.method == "full"
            ? ""
            : absl::StrCat(
                  "lora: {rank: 4, alpha: 8, dropout: ", options.dropout, "}");
    v1::TrainerTask task = Task(
        absl::StrReplaceAll(kJob, {{"METHOD", options.method},
                                   {"LORA", lora},
                                   {"STEPS", absl::StrCat(options.steps)},
                                   {"BATCH", absl::StrCat(options.batch)},
                                   {"EVERY", absl::StrCat(options.every)}}),
        ranks);
    AddInput(task, "rows.jsonl");
    return task;
  }

  static std::string ResultFile(const v1::TrainerTask& task) {
    const std::string output = task.work_directory() + "/output/";
    const std::string adapter = output + "adapter_model.safetensors";
    return std::filesystem::exists(adapter) ? adapter
                                            : output + "model.safetensors";
  }

  static std::string Digest(const v1::TrainerTask& task) {
    return Sha256OfFile(ResultFile(task)).value_or("no output");
  }

  // Kills or stops something when rank 0 has reported a step.
  static Gang::OnEvent AtStep(int64_t step, std::function<void(Gang&)> action) {
    return [=](Gang& gang, int rank, const v1::TrainerEvent& event) {
      if (rank == 0 && event.metrics().step() == step) action(gang);
    };
  }
};

class WorldSizesTest : public RanksTest,
                       public ::testing::WithParamInterface<const char*> {};

TEST_P(WorldSizesTest, OneToFourRanks_SameLosses) {
  JobOptions options{.method = GetParam()};
  const Run one = RunTask(Job(options, 1));
  ASSERT_EQ(one.metrics.size(), 20u) << one.failure.message();
  EXPECT_EQ(one.metrics[0].gathered_block_bytes(), 0);
  for (const int ranks : {2, 3, 4}) {
    const Run run = RunTask(Job(options, ranks));
    ASSERT_EQ(run.metrics.size(), 20u) << run.failure.message();
    for (size_t i = 0; i < run.metrics.size(); ++i) {
      EXPECT_NEAR(run.metrics[i].loss() / one.metrics[i].loss(), 1,
                  i == 0 ? 1e-6 : 1e-5)
          << ranks << " ranks, step " << i + 1;
      EXPECT_EQ(run.metrics[i].tokens_trained(),
                one.metrics[i].tokens_trained());
    }
    const bool sharded = options.method != "full";
    EXPECT_EQ(run.metrics[1].gathered_block_bytes() > 0, sharded);
    EXPECT_EQ(run.metrics[1].gathered_other_bytes(), 0);
    for (const RankOutcome& rank : run.ranks) EXPECT_EQ(rank.exit_code, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, WorldSizesTest,
                         ::testing::Values("qlora", "lora", "full"));

TEST_F(RanksTest, FewerRowsThanRanks_AllRanksFinish) {
  const JobOptions options{.steps = 3, .batch = 2};
  const Run one = RunTask(Job(options, 1));
  const Run four = RunTask(Job(options, 4));
  ASSERT_EQ(one.metrics.size(), 3u) << one.failure.message();
  ASSERT_EQ(four.metrics.size(), 3u) << four.failure.message();
  EXPECT_NEAR(four.metrics[2].loss() / one.metrics[2].loss(), 1, 1e-5);
}

TEST_F(RanksTest, SecondRun_IsBitForBitTheFirst) {
  const v1::TrainerTask first = Job({}, 2);
  const v1::TrainerTask second = Job({}, 2);
  const Run a = RunTask(first);
  const Run b = RunTask(second);
  ASSERT_EQ(a.metrics.size(), b.metrics.size());
  for (size_t i = 0; i < a.metrics.size(); ++i) {
    EXPECT_EQ(a.metrics[i].loss(), b.metrics[i].loss());
    EXPECT_EQ(a.metrics[i].grad_norm(), b.metrics[i].grad_norm());
  }
  EXPECT_EQ(Digest(first), Digest(second));
  EXPECT_EQ(a.staged.back().state_sha256(), b.staged.back().state_sha256());
}

TEST_F(RanksTest, AllRanks_ReportTheSameState) {
  const Run run = RunTask(Job({.every = 10}, 3));
  std::vector<std::string> states;
  for (const RankOutcome& rank : run.ranks) {
    std::string seen;
    for (const v1::TrainerEvent& event : rank.events) {
      if (event.has_staged()) seen += event.staged().state_sha256() + " ";
    }
    states.push_back(seen);
  }
  EXPECT_EQ(states[0].size(), 2u * 65u);
  EXPECT_EQ(states[1], states[0]);
  EXPECT_EQ(states[2], states[0]);
}

TEST_F(RanksTest, ResumedRun_EndsBitForBitAsUninterrupted) {
  const v1::TrainerTask whole = Job({.every = 8}, 2);
  const Run uninterrupted = RunTask(whole);
  ASSERT_TRUE(uninterrupted.has_result) << uninterrupted.failure.message();
  v1::TrainerTask rest = Job({.every = 8}, 2);
  rest.set_resume_directory(whole.work_directory() + "/staged/8");
  const Run resumed = RunTask(rest);
  ASSERT_EQ(resumed.metrics.size(), 12u) << resumed.failure.message();
  EXPECT_EQ(resumed.metrics[0].step(), 9);
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(resumed.metrics[i].loss(), uninterrupted.metrics[i + 8].loss());
  }
  EXPECT_EQ(Digest(rest), Digest(whole));
  const std::string lines =
      Read(rest.work_directory() + "/output/metrics.jsonl");
  EXPECT_EQ(std::ranges::count(lines, '\n'), 20);
}

TEST_F(RanksTest, ResumeOnOtherData_IsRefused) {
  const v1::TrainerTask whole = Job({.steps = 4, .every = 2}, 1);
  ASSERT_TRUE(RunTask(whole).has_result);
  WriteShakespeareRows("rows.jsonl", 63, 65);
  v1::TrainerTask rest = Job({.steps = 4, .every = 2}, 1);
  rest.set_resume_directory(whole.work_directory() + "/staged/2");
  const Run run = RunTask(rest);
  EXPECT_EQ(run.ranks[0].exit_code, 10);
  EXPECT_THAT(run.failure.message(),
              ::testing::HasSubstr("other training data"));
}

TEST_F(RanksTest, ResumeWithAnotherBatchSize_IsRefused) {
  const v1::TrainerTask whole = Job({.steps = 4, .batch = 5, .every = 2}, 1);
  ASSERT_TRUE(RunTask(whole).has_result);
  v1::TrainerTask rest = Job({.steps = 4, .batch = 6, .every = 2}, 1);
  rest.set_resume_directory(whole.work_directory() + "/staged/2");
  const Run run = RunTask(rest);
  EXPECT_EQ(run.ranks[0].exit_code, 10);
  EXPECT_THAT(run.failure.message(),
              ::testing::HasSubstr("another train.global_batch_size"));
}

TEST_F(RanksTest, ResumeInAnotherComputeType_WarnsOrIsRefused) {
  const v1::TrainerTask whole = Job({.steps = 4, .every = 2}, 1);
  ASSERT_TRUE(RunTask(whole).has_result);
  const auto resume = [&](const char* keys) {
    v1::TrainerTask rest = Job({.steps = 4, .every = 2}, 1);
    rest.set_job_file(absl::StrReplaceAll(rest.job_file(),
                                          {{"compute_dtype: float32", keys}}));
    rest.set_resume_directory(whole.work_directory() + "/staged/2");
    return RunTask(rest);
  };
  const Run warned = resume("compute_dtype: bfloat16");
  EXPECT_TRUE(warned.has_result) << warned.failure.message();
  EXPECT_THAT(warned.logs, ::testing::Contains(::testing::HasSubstr(
                               "computed in float32, now it is bfloat16")));
  const Run refused = resume("compute_dtype: bfloat16\n  deterministic: true");
  EXPECT_EQ(refused.ranks[0].exit_code, 10);
  EXPECT_THAT(refused.failure.message(),
              ::testing::HasSubstr("compute type float32"));
  const Run same = resume("compute_dtype: float32\n  deterministic: true");
  EXPECT_TRUE(same.has_result) << same.failure.message();
}

TEST_F(RanksTest, KilledRank_TheOthersLeaveWithInfraQuickly) {
  absl::Time killed;
  const Run run = RunTask(Job({.steps = 100000}, 3), AtStep(5, [&](Gang& gang) {
                            killed = absl::Now();
                            gang.Signal(1, SIGKILL);
                          }));
  EXPECT_LT(absl::Now() - killed, absl::Seconds(5));
  EXPECT_EQ(run.ranks[1].exit_code, 128 + SIGKILL);
  for (const int survivor : {0, 2}) {
    EXPECT_EQ(run.ranks[survivor].exit_code, 13);
  }
  EXPECT_EQ(run.failure.failure_class(), v1::FAILURE_CLASS_INFRA);
}

TEST_F(RanksTest, AgentGone_RankExitsAtOnce) {
  const Run run = RunTask(Job({.steps = 100000}, 1),
                          AtStep(3, [](Gang& gang) { gang.Abandon(0); }));
  EXPECT_EQ(run.ranks[0].exit_code, 17);
}

TEST_F(RanksTest, Sigterm_SavesAndAllRanksLeave) {
  v1::TrainerTask task = Job({.steps = 100000}, 2);
  const Run run =
      RunTask(task, AtStep(3, [](Gang& gang) { gang.Signal(1, SIGTERM); }));
  for (const RankOutcome& rank : run.ranks) EXPECT_EQ(rank.exit_code, 0);
  EXPECT_TRUE(run.result.stopped());
  ASSERT_EQ(run.staged.size(), 1u);
  EXPECT_EQ(run.staged[0].step(), run.result.step());
  EXPECT_FALSE(run.staged[0].final());
  EXPECT_TRUE(
      std::filesystem::exists(run.staged[0].directory() + "/manifest.json"));
}

TEST_F(RanksTest, SaveNow_StagesACheckpointAndStageTakenRemovesIt) {
  std::string staged;
  const Run run = RunTask(
      Job({.steps = 40}, 1),
      [&](Gang& gang, int rank, const v1::TrainerEvent& event) {
        v1::TrainerCommand command;
        if (event.metrics().step() == 3) {
          command.mutable_save_now();
          gang.Send(rank, command);
        } else if (event.has_staged() && !event.staged().final()) {
          staged = event.staged().directory();
          command.mutable_stage_taken()->set_step(event.staged().step());
          gang.Send(rank, command);
        }
      });
  ASSERT_TRUE(run.has_result) << run.failure.message();
  EXPECT_FALSE(staged.empty());
  EXPECT_FALSE(std::filesystem::exists(staged));
  EXPECT_EQ(run.staged.size(), 2u);
}

}  // namespace
}  // namespace qlora::trainer
