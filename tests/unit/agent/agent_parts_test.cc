// The small parts of the agent that need no process.
#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/agent/log_budget.h"
#include "worker/agent/proc_stat.h"
#include "worker/agent/progress_watch.h"
#include "worker/agent/text.h"

namespace qlora::agent {
namespace {

using ::testing::HasSubstr;

v1::TrainerProgress Progress(v1::TrainerProgress::Phase phase, int64_t step,
                             int64_t bytes = 0) {
  v1::TrainerProgress progress;
  progress.set_phase(phase);
  progress.set_step(step);
  progress.set_bytes(bytes);
  return progress;
}
v1::TrainerProgress Step(int64_t step) {
  return Progress(v1::TrainerProgress::PHASE_STEP, step);
}

class ProgressWatchTest : public ::testing::Test {
 protected:
  void Pass(absl::Duration d) {
    now_ += d;
    for (; d > absl::ZeroDuration(); d -= absl::Seconds(1)) {
      watch_.Tick(std::min(d, absl::Seconds(1)));
    }
  }
  // Steps from the first to the last, each of that duration.
  void Steps(int first, int last, absl::Duration duration) {
    for (int step = first; step <= last; ++step) {
      watch_.Begin(Step(step), now_);
      Pass(duration);
    }
  }

  ProgressWatch watch_{absl::Minutes(30), absl::Minutes(1)};
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
};

TEST_F(ProgressWatchTest, FirstStep_HasALimitOfItsOwn) {
  Pass(absl::Minutes(29));
  EXPECT_EQ(watch_.Stalled(), std::nullopt);
  watch_.Begin(Step(1), now_);
  Pass(absl::Minutes(30));
  EXPECT_EQ(watch_.Stalled(), std::nullopt);
  Pass(absl::Seconds(1));
  EXPECT_EQ(watch_.Stalled(), "step 1 has not gone on for 30m1s (limit 30m)");
}

TEST_F(ProgressWatchTest, ShortSteps_GetTheStepTimeout) {
  Steps(1, 3, absl::Milliseconds(10));
  Pass(absl::Seconds(59));
  EXPECT_EQ(watch_.Stalled(), std::nullopt);
  Pass(absl::Seconds(2));
  EXPECT_THAT(watch_.Stalled().value_or(""), HasSubstr("step 3 has not gone"));
  watch_.Word();
  EXPECT_EQ(watch_.Stalled(), std::nullopt);
}

TEST_F(ProgressWatchTest, LongSteps_GetTenTimesTheirUsualTime) {
  Steps(1, 5, absl::Seconds(20));
  watch_.Begin(Step(6), now_);
  EXPECT_EQ(watch_.limit(), absl::Seconds(200));
}

TEST_F(ProgressWatchTest, OneSlowStepOfMany_DoesNotCount) {
  Steps(1, 1, absl::Seconds(50));
  Steps(2, 101, absl::Seconds(1));
  watch_.Begin(Step(102), now_);
  EXPECT_EQ(watch_.limit(), absl::Minutes(1));
}

TEST_F(ProgressWatchTest, Saving_GetsTimeForItsBytes) {
  Steps(1, 2, absl::Seconds(1));
  watch_.Begin(
      Progress(v1::TrainerProgress::PHASE_SAVING, 2, int64_t{400} << 20), now_);
  EXPECT_EQ(watch_.limit(), absl::Seconds(160));
  Pass(absl::Seconds(161));
  EXPECT_THAT(watch_.Stalled().value_or(""), HasSubstr("saving after step 2"));
}

TEST_F(ProgressWatchTest, Evaluation_GoesOnWithEachOfItsMicroBatches) {
  Steps(1, 2, absl::Seconds(1));
  for (int i = 0; i < 20; ++i) {
    watch_.Begin(Progress(v1::TrainerProgress::PHASE_EVALUATION, 2), now_);
    Pass(absl::Seconds(50));
    ASSERT_EQ(watch_.Stalled(), std::nullopt);
  }
  Pass(absl::Seconds(20));
  EXPECT_THAT(watch_.Stalled().value_or(""),
              HasSubstr("the evaluation after step 2"));
}

TEST_F(ProgressWatchTest, AgentThatWasStopped_DoesNotBlameTheRanks) {
  Steps(1, 2, absl::Seconds(1));
  watch_.Tick(absl::Hours(1));
  EXPECT_EQ(watch_.Stalled(), std::nullopt);
  // Nor does its pause count as the duration of a step.
  watch_.Begin(Step(3), now_ + absl::Hours(1));
  EXPECT_EQ(watch_.limit(), absl::Minutes(1));
}

TEST(LogBudget, Flood_IsCutToABurstAndARate) {
  LogBudget budget;
  absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  int passed = 0;
  for (int i = 0; i < 10'000; ++i) passed += budget.Take(now);
  EXPECT_EQ(passed, LogBudget::kBurst);
  EXPECT_EQ(budget.TakeLeftOut(), 10'000 - passed);
  EXPECT_EQ(budget.TakeLeftOut(), 0);
  now += absl::Seconds(2);
  passed = 0;
  for (int i = 0; i < 10'000; ++i) passed += budget.Take(now);
  EXPECT_EQ(passed, 2 * LogBudget::kPerSecond);
  now += absl::Hours(1);
  EXPECT_TRUE(budget.Take(now));
}

TEST(ParsePrintedLine, Level_IsWhatTheLineSays) {
  const struct {
    const char* line;
    const char* level;
    const char* text;
  } cases[] = {
      {"2026-11-21T06:00:00.123Z E qlora-trainer: no model: x", "error",
       "no model: x"},
      {"2026-11-21T06:00:00.123Z I qlora-trainer: fine", "info", "fine"},
      {"[W1121 06:00:00.123456 Context.cpp:1] slow", "warning", nullptr},
      {"E1121 06:00:00.123456 12 file.cc:3] bad", "error", nullptr},
      {"Warning: odd", "warning", nullptr},
      {"ERROR: bad", "error", nullptr},
      {"[debug] detail", "debug", nullptr},
      {"Errors: none", "info", nullptr},
      {"terminate called", "info", nullptr},
      {"E1", "info", nullptr},
      {"", "info", nullptr}};
  for (const auto& c : cases) {
    const PrintedLine parsed = ParsePrintedLine(c.line);
    EXPECT_EQ(parsed.level, c.level) << c.line;
    EXPECT_EQ(parsed.text, c.text == nullptr ? c.line : c.text);
  }
}

TEST(ReadProcStat, OwnProcess_RunsAndHasItsParent) {
  const auto stat = ReadProcStat(::getpid());
  ASSERT_TRUE(stat.has_value());
  EXPECT_EQ(stat->state, 'R');
  EXPECT_EQ(stat->parent, ::getppid());
  EXPECT_FALSE(ReadProcStat(-1).has_value());
}

TEST(WithoutSourcePlaces, LeavesEverythingElse) {
  EXPECT_EQ(WithoutSourcePlaces(
                "gathering: [/src/gloo/transport/tcp/pair.cc:534] Connection "
                "closed by peer [127.0.0.1]:42"),
            "gathering: Connection closed by peer [127.0.0.1]:42");
  EXPECT_EQ(WithoutSourcePlaces("[enforce fail at cpu.cpp:7] no memory"),
            "no memory");
  EXPECT_EQ(WithoutSourcePlaces("[a.h:1][b.cc:22] no"), "no");
  for (const char* kept : {"", "[", "]", "[]", "[x.cc:]", "rows[3] of a.cc:1",
                           "[12:30]", "[data.csv:4] bad"}) {
    EXPECT_EQ(WithoutSourcePlaces(kept), kept);
  }
}

}  // namespace
}  // namespace qlora::agent
