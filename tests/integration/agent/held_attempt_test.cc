// Attempts that the coordinator's database does not know.
#include <chrono>
#include <filesystem>
#include <future>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/agent/supervisor_fixture.h"

namespace qlora::agent {
namespace {

using ::testing::HasSubstr;

// An older copy of the coordinator's database was restored, then the newest.
TEST_F(SupervisorTest, HeldLeftAttempt_WaitsForADatabaseThatKnowsIt) {
  LeaveACheckpoint();
  store_->Restart();
  Decide(v1::Decision::ACTION_HOLD);
  OnLoop([] {});
  EXPECT_EQ(supervisor_->Inventory().size(), 1u);
  EXPECT_TRUE(Events().empty());
  Decide(v1::Decision::ACTION_KEEP);
  EXPECT_TRUE(WaitForEnd().stopped());
}

TEST_F(SupervisorTest, HeldLeftAttempt_IsGivenUpInTime) {
  RankTimeouts timeouts;
  timeouts.kept = absl::Seconds(1);
  LeaveACheckpoint(timeouts);
  store_->Restart();
  Decide(v1::Decision::ACTION_HOLD);
  WaitUntilGone(directory_ + "/attempts/j-test-1");
  EXPECT_THAT(
      WaitFor([](const auto& e) { return e.has_notice(); }).notice().message(),
      HasSubstr("was not stored: for too long, no coordinator came"));
  EXPECT_FALSE(WaitForEnd().complete());
}

TEST_F(SupervisorTest, HeldRanks_SaveAndLeaveInTime_WhatTheyLeftIsKept) {
  RankTimeouts timeouts;
  timeouts.alone = absl::Milliseconds(300);
  MakeSupervisor(timeouts);
  supervisor_->SetConnected(true);
  Run("steps=100000\nstep_ms=5", 1);
  WaitForStep();
  Decide(v1::Decision::ACTION_HOLD);
  WaitUntilRanksLeave();
  for (const auto& event : Events()) {
    EXPECT_FALSE(event.has_staged() || event.has_ended());
  }
  // Nor does the worker wait for anybody to take it.
  const auto drained = std::make_shared<std::promise<void>>();
  supervisor_->Drain(absl::Seconds(20), [drained] { drained->set_value(); });
  ASSERT_EQ(drained->get_future().wait_for(std::chrono::seconds(10)),
            std::future_status::ready);
  NextRun();
  Decide(v1::Decision::ACTION_KEEP);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_TRUE(ended.stopped()) << ended.DebugString();
  EXPECT_THAT(ended.message(), HasSubstr("no coordinator came that knows it"));
  WaitFor([](const auto& e) { return e.has_staged(); });
}

// The word of a rank other than 0 waits too, where rank 0 is and elsewhere.
TEST_F(SupervisorTest, HeldRanks_TheirSharesAreKept) {
  for (const int first : {0, 1}) {
    RankTimeouts timeouts;
    timeouts.alone = absl::Milliseconds(300);
    NextRun(timeouts);
    supervisor_->SetConnected(true);
    v1::WorkerCommand prepare =
        Prepare("steps=100000\nstep_ms=5\nsave_every=10", 2);
    prepare.mutable_prepare()->mutable_ranks()->DeleteSubrange(0, first);
    Run(prepare);
    WaitFor([](const auto& e) { return e.has_running(); });
    Decide(v1::Decision::ACTION_HOLD);
    OnLoop([] {});
    const size_t before = Events().size();
    WaitUntilRanksLeave();
    const std::vector<v1::WorkerEvent> events = Events();
    for (size_t i = before; i < events.size(); ++i) {
      EXPECT_FALSE(events[i].has_staged() || events[i].has_ended());
    }
    NextRun();
    ASSERT_EQ(supervisor_->Inventory().size(), 1u);
    Decide(v1::Decision::ACTION_KEEP);
    EXPECT_TRUE(WaitForEnd().stopped());
    std::vector<int> shares(2);
    for (const auto& event : Events()) {
      if (event.has_staged()) ++shares[event.staged().rank()];
    }
    EXPECT_EQ(shares[0], 1 - first);
    EXPECT_EQ(shares[1], 2);
    EXPECT_TRUE(Events().back().has_ended());
    WaitUntilGone(directory_ + "/attempts/j-test-1");
  }
}

TEST_F(SupervisorTest, HeldDuringAnUpload_HandsItInLater) {
  store_->PauseUploads(true);
  Run("hang=2\nsave_every=1", 1);
  WaitFor([](const auto& e) { return e.metrics().step() == 2; });
  Decide(v1::Decision::ACTION_HOLD);
  OnLoop([] {});
  store_->PauseUploads(false);
  while (!store_->Has(Sha256Hex("state 1"))) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  for (const auto& event : Events()) EXPECT_FALSE(event.has_staged());
  const std::string staged = directory_ + "/attempts/j-test-1/work/staged/1";
  EXPECT_TRUE(fs::exists(staged));
  Decide(v1::Decision::ACTION_KEEP);
  WaitFor([](const auto& e) { return e.staged().step() == 1; });
  WaitUntilGone(staged);
}

}  // namespace
}  // namespace qlora::agent
