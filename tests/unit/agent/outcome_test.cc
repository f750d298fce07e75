#include "worker/agent/outcome.h"

#include <signal.h>

#include "gtest/gtest.h"

namespace qlora::agent {
namespace {

RankEnd Failed(int rank, v1::FailureClass failure_class,
               const std::string& message) {
  RankEnd end{.rank = rank, .exit_code = 10, .failure = {}, .result = {}};
  end.failure.emplace();
  end.failure->set_failure_class(failure_class);
  end.failure->set_message(message);
  return end;
}

std::string MessageOf(const std::vector<RankEnd>& ends) {
  return DecideOutcome(ends, std::nullopt).message();
}

TEST(DecideOutcome, AloneOrUnanimous_NeedsNoRank) {
  const RankEnd one = Failed(0, v1::FAILURE_CLASS_INTERNAL, "it broke");
  EXPECT_EQ(MessageOf({one}), "it broke");
  EXPECT_EQ(MessageOf({one, Failed(1, v1::FAILURE_CLASS_INTERNAL, "it broke")}),
            "it broke");
}

TEST(DecideOutcome, WhatIsWrongWithTheJob_NeedsNoRank) {
  const RankEnd lost = Failed(1, v1::FAILURE_CLASS_INFRA, "a peer is gone");
  for (const auto failure_class :
       {v1::FAILURE_CLASS_USER, v1::FAILURE_CLASS_NUMERICAL}) {
    EXPECT_EQ(MessageOf({Failed(0, failure_class, "line 3 is bad"), lost}),
              "line 3 is bad");
  }
}

TEST(DecideOutcome, WhatIsWrongWithOneRank_NamesIt) {
  const RankEnd full = Failed(1, v1::FAILURE_CLASS_DISK, "no space");
  const v1::AttemptEnded ended = DecideOutcome(
      {Failed(0, v1::FAILURE_CLASS_INFRA, "a peer is gone"), full},
      std::nullopt);
  EXPECT_EQ(ended.ranks(1).message(), "rank 1: no space");
  RankEnd killed{.rank = 2, .signal = SIGKILL, .failure = {}, .result = {}};
  EXPECT_EQ(MessageOf({killed, full}),
            "rank 2 was killed by signal 9 (SIGKILL)");
}

TEST(DecideOutcome, PlacesInSourceFiles_AreLeftToTheLog) {
  const v1::AttemptEnded ended = DecideOutcome(
      {Failed(0, v1::FAILURE_CLASS_INFRA, "sum: [/gloo/pair.cc:534] closed")},
      std::nullopt);
  EXPECT_EQ(ended.message(), "sum: closed");
  EXPECT_EQ(ended.ranks(0).message(), "rank 0: sum: closed");
}

TEST(DecideOutcome, LeastMemoryOfARank_IsTheAttempts) {
  RankEnd least = Failed(1, v1::FAILURE_CLASS_OOM, "nothing is left");
  EXPECT_FALSE(DecideOutcome({least}, std::nullopt).least_memory());
  least.failure->set_least_memory(true);
  EXPECT_TRUE(DecideOutcome({Failed(0, v1::FAILURE_CLASS_INFRA, "gone"), least},
                            std::nullopt)
                  .least_memory());
}

}  // namespace
}  // namespace qlora::agent
