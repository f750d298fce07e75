// Cancelling and deleting, and ranks that do not end when they are told to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_harness.h"

namespace qlora::server {
namespace {

using qlora::v1::FAILURE_CLASS_DISK;
using qlora::v1::FAILURE_CLASS_UNSPECIFIED;
using qlora::v1::FAILURE_CLASS_USER;
using qlora::v1::WorkerCommand;

constexpr auto kStarting = qlora::v1::JOB_STATE_STARTING;
constexpr auto kCancelling = qlora::v1::JOB_STATE_CANCELLING;
constexpr auto kCancelled = qlora::v1::JOB_STATE_CANCELLED;

TEST(Cancel, StopsRanksAndWinsOverFailure) {
  const std::string why = "a reason too long to lie inside of a string object";
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, why).ok()); });
  EXPECT_EQ(core.job(id).state(), kCancelling);
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStop), 1);
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "").ok()); });
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStop), 1);
  core.Ended("n1", id, FAILURE_CLASS_USER);
  EXPECT_EQ(core.job(id).state(), kCancelled);
  EXPECT_EQ(core.job(id).reason(), why);
}

TEST(Cancel, CutsOffACheckpointWithoutCallingItLost) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 2).ok());
  const std::string id =
      core.RunningJob("n1", "resources: {devices_per_node: 2}\n");
  core.Staged("n1", id, 1, 14);
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "").ok()); });
  qlora::v1::WorkerEvent ended;
  ended.set_job_id(id);
  ended.set_attempt(1);
  ended.set_term(core.attempt(id).term());
  ended.mutable_ended()->set_stopped(true);
  std::vector<std::string> told;
  for (const Effect& effect :
       core.Do([&](Draft& d) { OnAttemptEvent(d, "n1", ended); })) {
    if (const auto* line = std::get_if<AppendEvent>(&effect)) {
      told.push_back(line->event.type());
    }
  }
  EXPECT_EQ(core.job(id).state(), kCancelled);
  EXPECT_THAT(told, testing::ElementsAre("Cancelled"));
}

TEST(Cancel, OfAHeldJobKeepsTheEvidenceAndTheCheckpoints) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 30);
  core.Ended("n1", id, FAILURE_CLASS_DISK);
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "no space").ok()); });
  EXPECT_EQ(core.job(id).state(), kCancelled);
  EXPECT_EQ(core.job(id).reason(),
            "no space; it was HELD: n1: the test says so");
  EXPECT_EQ(core.job(id).hint(), "");
  EXPECT_EQ(core.job(id).last_failure().failure_class(), FAILURE_CLASS_DISK);
  EXPECT_EQ(core.job(id).last_failure().message(), "the test says so");
  EXPECT_TRUE(core.state().checkpoints.contains({id, 30}));
}

// Two ranks: the living one is waited for, the silent one is not.
TEST(Cancel, WaitsForNoNodeThatIsAway) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  const std::string id = core.RunningGang();
  core.Disconnect("n2");
  std::string told;
  for (const Effect& effect : core.Do(
           [&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "enough").ok()); })) {
    if (const auto* line = std::get_if<AppendEvent>(&effect)) {
      told += line->event.message() + "\n";
    }
  }
  EXPECT_EQ(told, "enough; waits for the ranks on n1\n");
  EXPECT_EQ(core.job(id).state(), kCancelling);
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  EXPECT_EQ(core.job(id).state(), kCancelled);
  EXPECT_EQ(core.job(id).reason(),
            "enough; unreachable: n2 (silent since 22:23:20 UTC); what its "
            "ranks still do does not count, and they end when it returns");
  EXPECT_EQ(core.attempt(id).state(), ATTEMPT_STATE_CANCELLED);
  // Nothing is placed on the node before it is back, and it is told then.
  const std::string next = core.Submit(kTwoNodes);
  EXPECT_EQ(core.job(next).state(), qlora::v1::JOB_STATE_QUEUED);
  const auto welcome = core.Join("n2", 1, "boot-1", {{id, 1}});
  EXPECT_EQ(welcome->decisions(0).action(), qlora::v1::Decision::ACTION_KILL);
  // Its device is free when the ranks are gone.
  EXPECT_EQ(core.job(next).state(), qlora::v1::JOB_STATE_QUEUED);
  EXPECT_EQ(
      NodeView(core.state(), core.state().nodes.at("n2")).devices(0).job_id(),
      id);
  core.Ended("n2", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  EXPECT_EQ(core.job(next).state(), kStarting);
}

TEST(Cancel, RanksOfAReturnedNodeThatDoNotEnd_QuarantineIt) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Disconnect("n1");
  core.Do([&](Draft& d) { DeleteJob(d, id); });
  ASSERT_FALSE(core.state().jobs.contains(id));
  core.Advance(absl::Seconds(20));
  ASSERT_TRUE(core.Join("n1", 1, "boot-1", {{id, 1}}).ok());
  for (int i = 0; i < 3; ++i) {
    core.Heartbeat("n1");
    core.Advance(absl::Seconds(23));
  }
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_READY);
  core.Advance(absl::Seconds(2));
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_QUARANTINED);
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1", 1, "boot-2").ok());
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_READY);
  EXPECT_TRUE(core.state().attempts.empty());
}

// It reports that while the others of its gang still save.
TEST(Cancel, GivenUpRanksThatEndBeforeTheirAttempt_LeaveTheirDevice) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  const std::string id = core.RunningGang();
  core.Disconnect("n2");
  for (int i = 0; i < 5; ++i) {
    core.Heartbeat("n1");
    core.Advance(absl::Seconds(25));
  }
  ASSERT_EQ(core.attempt(id).state(), ATTEMPT_STATE_DRAINING);
  ASSERT_TRUE(core.Join("n2", 1, "boot-1", {{id, 1}}).ok());
  core.Ended("n2", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  EXPECT_EQ(core.attempt(id).state(), ATTEMPT_STATE_LOST);
  // The job itself, in its pause, keeps them from lesser ones only.
  const std::string next = core.Submit("priority: 90\nresources: {nodes: 2}\n");
  EXPECT_EQ(core.job(next).state(), kStarting);
}

TEST(Cancel, EndsWhenTheLastNodeFallsSilent) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string broken = core.RunningJob("n1");
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, broken, "").ok()); });
  core.Disconnect("n1");
  EXPECT_EQ(core.job(broken).state(), kCancelled);
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string hung = core.RunningJob("n1");
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, hung, "").ok()); });
  core.Advance(absl::Seconds(29));
  EXPECT_EQ(core.job(hung).state(), kCancelling);
  core.Advance(absl::Seconds(2));
  EXPECT_EQ(core.job(hung).state(), kCancelled);
}

// A start of the coordinator gives the node its lease to say how it ended.
TEST(Cancel, BeforeARestartEndsAfterTheLease) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "").ok()); });
  core.Restart();
  core.Advance(absl::Seconds(29));
  EXPECT_EQ(core.job(id).state(), kCancelling);
  core.Advance(absl::Seconds(2));
  EXPECT_EQ(core.job(id).state(), kCancelled);
}

TEST(Cancel, OfAnEndedJobIsRefused) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Ended("n1", id, FAILURE_CLASS_USER);
  core.Do([&](Draft& d) {
    EXPECT_EQ(CancelJob(d, id, "").code(),
              absl::StatusCode::kFailedPrecondition);
  });
}

TEST(Cancel, DeletedWhileItRuns_GoesWhenItsRanksAreGone) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 5);
  core.Do([&](Draft& d) { DeleteJob(d, id); });
  EXPECT_TRUE(core.state().jobs.at(id).record.deleting());
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  EXPECT_FALSE(core.state().jobs.contains(id));
  EXPECT_TRUE(core.state().checkpoints.empty());
  EXPECT_TRUE(core.state().attempts.empty());
  core.Restart();
  EXPECT_TRUE(core.state().attempts.empty());
}

TEST(Cancel, RanksThatDoNotEnd_QuarantineTheirNode) {
  CoreHarness core;
  core.state().timings.lease = absl::Hours(1);
  core.state().timings.reschedule_after = absl::Hours(2);
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "").ok()); });
  core.Advance(absl::Seconds(71));
  EXPECT_EQ(core.job(id).state(), kCancelled);
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_QUARANTINED);
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1").ok());
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_QUARANTINED);
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1", 1, "boot-2").ok());
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_READY);
}

}  // namespace
}  // namespace qlora::server
