// The small parts of the trainer that need no model.
#include <atomic>
#include <cmath>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/trainer/divergence.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/metrics_file.h"
#include "worker/trainer/parallel/agreement.h"
#include "worker/trainer/period_trigger.h"
#include "worker/trainer/text_stream.h"
#include "worker/trainer/token_sampler.h"

namespace qlora::trainer {
namespace {

TEST(DivergenceWatch, CollapsedOrDiverged_WarnsOnceAndNamesTheRemedy) {
  DivergenceWatch collapsed, diverged;
  std::vector<std::string> warnings;
  for (int step = 1; step <= 30; ++step) {
    for (const std::string& warning :
         {collapsed.After(step, 6.238, step < 4 ? 2.5 : 0),
          diverged.After(step, step < 4 ? 3 : 20, 1e3)}) {
      if (!warning.empty()) warnings.push_back(warning);
    }
  }
  ASSERT_EQ(warnings.size(), 2);
  EXPECT_THAT(warnings[0], ::testing::StartsWith(
                               "the gradient is 0 since step 4 (loss 6.238)"));
  EXPECT_THAT(warnings[1], ::testing::HasSubstr("its start (3) since step 4"));
  EXPECT_THAT(warnings[1], ::testing::HasSubstr("lower train.learning_rate"));
}

TEST(DivergenceWatch, NoisyRun_IsNoTrouble) {
  DivergenceWatch watch;
  for (int step = 1; step <= 100; ++step) {
    const bool spike = step % 10 == 0;
    EXPECT_EQ(watch.After(step, spike ? 9 : 3.0 / step, spike ? 0 : 1), "");
  }
}

TEST(DivergenceWatch, ResumedJob_IsMeasuredByItsOwnStart) {
  DivergenceWatch watch;
  watch.BeganAt(3);
  std::string warning;
  for (int step = 101; step <= 105; ++step) {
    warning += watch.After(step, 20, 1);
  }
  EXPECT_THAT(warning, ::testing::HasSubstr("its start (3) since step 101"));
}

TEST(WorseAtEnd, HigherLossOverTheSameRows_IsSaidWithBoth) {
  EXPECT_EQ(WorseAtEnd(2, 2.001), "");
  EXPECT_THAT(WorseAtEnd(2, 3.25),
              ::testing::HasSubstr("the loss over the first batch was 2 before "
                                   "the first step and is 3.25 at the end"));
}

TEST(ClassifyFailure, EveryClass_HasItsExitCode) {
  const std::vector<std::pair<absl::Status, int>> cases = {
      {absl::InvalidArgumentError("x"), 10},
      {absl::NotFoundError("x"), 10},
      {absl::UnimplementedError("x"), 10},
      {NumericalError("x"), 11},
      {absl::ResourceExhaustedError("x"), 12},
      {absl::UnavailableError("x"), 13},
      {absl::DeadlineExceededError("x"), 13},
      {DiskError(absl::ResourceExhaustedError("x")), 15},
      {DiskError(absl::UnavailableError("x")), 15},
      {DiskError(absl::NotFoundError("x")), 10},
      {absl::InternalError("x"), 16},
      {absl::UnknownError("x"), 16}};
  for (const auto& [status, code] : cases) {
    EXPECT_EQ(ClassifyFailure(status).exit_code, code) << status;
  }
  EXPECT_TRUE(DiskError(absl::OkStatus()).ok());
}

TEST(AgreeOn, LowestFailure_ReachesEveryRank) {
  auto gang = MakeThreadGang(3);
  std::vector<std::thread> threads;
  for (auto& c : gang) {
    threads.emplace_back([&] {
      EXPECT_TRUE(AgreeOn(*c, absl::OkStatus()).ok());
      const absl::Status mine =
          c->rank() == 0 ? absl::OkStatus()
                         : NumericalError("rank " + std::to_string(c->rank()));
      const absl::Status agreed = AgreeOn(*c, mine);
      EXPECT_EQ(agreed.message(), "rank 1");
      EXPECT_EQ(ClassifyFailure(agreed).exit_code, 11);
      const absl::Status plain = AgreeOn(
          *c, c->rank() == 2 ? absl::NotFoundError("y") : absl::OkStatus());
      EXPECT_EQ(plain, absl::NotFoundError("y"));
    });
  }
  for (std::thread& t : threads) t.join();
}

TEST(CheckSame, RankThatDiffers_IsNamedOnEveryRank) {
  auto gang = MakeThreadGang(3);
  std::vector<std::thread> threads;
  for (auto& c : gang) {
    threads.emplace_back([&] {
      const std::string ours(64, 'a'), other(64, 'b');
      EXPECT_TRUE(CheckSame(*c, "base model", ours, "copy it").ok());
      const absl::Status status =
          CheckSame(*c, "base model", c->rank() == 2 ? other : ours, "copy it");
      EXPECT_EQ(ClassifyFailure(status).exit_code, 10);
      EXPECT_THAT(
          std::string(status.message()),
          ::testing::MatchesRegex("rank 2 on .+ does not have the same base "
                                  "model as rank 0 on .+: copy it"));
    });
  }
  for (std::thread& t : threads) t.join();
}

TEST(RunOnLead, ItsError_ReachesEveryRank) {
  auto gang = MakeThreadGang(3);
  std::atomic<int> runs = 0;
  std::vector<std::thread> threads;
  for (auto& c : gang) {
    threads.emplace_back([&] {
      const absl::Status status = RunOnLead(*c, absl::Minutes(1), [&] {
        ++runs;
        return DiskError(absl::ResourceExhaustedError("the disk is full"));
      });
      EXPECT_EQ(ClassifyFailure(status).exit_code, 15);
      EXPECT_EQ(status.message(), "the disk is full");
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(runs, 1);
}

TEST(PeriodTrigger, Steps_AreDueAtMultiples) {
  const PeriodTrigger trigger({.steps = 3}, absl::UnixEpoch());
  EXPECT_FALSE(trigger.DueAfter(2, 0, 0));
  EXPECT_TRUE(trigger.DueAfter(3, 0, 0));
  EXPECT_TRUE(trigger.DueAfter(6, 0, 0));
}

TEST(PeriodTrigger, Epochs_AreDueWhenPassed) {
  Period period;
  period.epochs = 0.5;
  const PeriodTrigger trigger(period, absl::UnixEpoch());
  EXPECT_FALSE(trigger.DueAfter(1, 0.0, 0.4));
  EXPECT_TRUE(trigger.DueAfter(2, 0.4, 0.6));
  EXPECT_TRUE(trigger.DueAfter(3, 0.9, 1.0 - 1e-15));
  EXPECT_FALSE(trigger.DueAfter(4, 1.0, 1.4));
}

TEST(PeriodTrigger, Time_IsDueOnceAPeriod) {
  Period period;
  period.time = absl::Minutes(30);
  const absl::Time start = absl::UnixEpoch();
  PeriodTrigger trigger(period, start);
  EXPECT_FALSE(trigger.DueAfter(1, 0, 1));
  EXPECT_FALSE(trigger.DueAt(start + absl::Minutes(29)));
  EXPECT_TRUE(trigger.DueAt(start + absl::Minutes(30)));
  EXPECT_FALSE(trigger.DueAt(start + absl::Minutes(31)));
}

TEST(PeriodTrigger, Never_IsNeverDue) {
  PeriodTrigger trigger({}, absl::UnixEpoch());
  EXPECT_FALSE(trigger.DueAfter(1, 0, 5));
  EXPECT_FALSE(trigger.DueAt(absl::InfiniteFuture()));
}

const std::vector<float> kLogits = {0.0f, std::log(6.0f), std::log(3.0f)};

TEST(SampleToken, ZeroTemperature_IsGreedy) {
  EXPECT_EQ(SampleToken(kLogits, {}, 0), 1);
}

TEST(SampleToken, Frequencies_FollowTheDistribution) {
  SamplingOptions options{.temperature = 1, .top_p = 0, .seed = 3};
  std::map<int, int> counts;
  for (uint64_t draw = 0; draw < 20000; ++draw) {
    ++counts[SampleToken(kLogits, options, draw)];
  }
  EXPECT_NEAR(counts[0], 2000, 200);
  EXPECT_NEAR(counts[1], 12000, 300);
  EXPECT_NEAR(counts[2], 6000, 300);
}

TEST(SampleToken, TopP_LeavesOutTheTail) {
  SamplingOptions options{.temperature = 1, .top_p = 0.85, .seed = 3};
  for (uint64_t draw = 0; draw < 2000; ++draw) {
    EXPECT_NE(SampleToken(kLogits, options, draw), 0);
  }
  options.top_p = 0.5;
  for (uint64_t draw = 0; draw < 200; ++draw) {
    EXPECT_EQ(SampleToken(kLogits, options, draw), 1);
  }
}

TEST(SampleToken, SameSeed_SameTokens) {
  SamplingOptions options{.temperature = 0.8, .top_p = 0, .seed = 9};
  std::vector<int> first, second, other;
  for (uint64_t draw = 0; draw < 50; ++draw) {
    first.push_back(SampleToken(kLogits, options, draw));
    second.push_back(SampleToken(kLogits, options, draw));
    options.seed = 10;
    other.push_back(SampleToken(kLogits, options, draw));
    options.seed = 9;
  }
  EXPECT_EQ(first, second);
  EXPECT_NE(first, other);
}

// Tokens are bytes; what is no UTF-8 decodes to U+FFFD, and a space at the
// start of the text is lost, as with SentencePiece.
absl::StatusOr<std::string> DecodeBytes(std::span<const int32_t> ids) {
  static constexpr char kEuro[] = "\xe2\x82\xac";
  std::string bytes(ids.begin(), ids.end());
  std::string text;
  for (size_t i = 0; i < bytes.size();) {
    if (bytes.compare(i, 3, kEuro) == 0) {
      text += kEuro;
      i += 3;
    } else {
      const bool ascii = static_cast<unsigned char>(bytes[i]) < 0x80;
      text += ascii ? std::string(1, bytes[i]) : "\xef\xbf\xbd";
      ++i;
    }
  }
  return !text.empty() && text[0] == ' ' ? text.substr(1) : text;
}

TEST(TextStream, Pieces_EndAtCharactersAndAddUp) {
  const std::string bytes = "a \xe2\x82\xac b c";
  TextStream stream(DecodeBytes);
  std::string text;
  for (const char c : bytes) {
    const std::string piece = stream.Add(static_cast<unsigned char>(c)).value();
    EXPECT_THAT(piece, ::testing::Not(::testing::HasSubstr("\xef\xbf\xbd")));
    text += piece;
  }
  EXPECT_EQ(text + stream.Flush().value(), bytes);
}

TEST(TextStream, UnfinishedCharacter_ComesAtTheEnd) {
  TextStream stream(DecodeBytes);
  EXPECT_EQ(stream.Add('x').value(), "x");
  EXPECT_EQ(stream.Add(0xe2).value(), "");
  EXPECT_EQ(stream.Flush().value(), "\xef\xbf\xbd");
}

TEST(MetricLine, Point_HasTheDocumentedFields) {
  v1::MetricPoint point;
  point.set_step(3);
  point.mutable_time()->set_seconds(86400);
  point.mutable_time()->set_nanos(250'000'000);
  point.set_loss(2.5);
  EXPECT_EQ(MetricLine(point),
            R"({"step":3,"epoch":0.0,"time":"1970-01-02T00:00:00.250Z",)"
            R"("loss":2.5,"grad_norm":0.0,"learning_rate":0.0,)"
            R"("tokens_trained":0,"tokens_total":0,"tokens_per_second":0.0,)"
            R"("step_seconds":0.0,"memory_bytes":0})");
  point.set_eval_loss(1.5);
  EXPECT_THAT(MetricLine(point), ::testing::HasSubstr(R"("eval_loss":1.5)"));
}

}  // namespace
}  // namespace qlora::trainer
