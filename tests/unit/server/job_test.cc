#include "server/core/job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_harness.h"

namespace qlora::server {
namespace {

using qlora::v1::FAILURE_CLASS_DISK;
using qlora::v1::FAILURE_CLASS_DRAINED;
using qlora::v1::FAILURE_CLASS_INFRA;
using qlora::v1::FAILURE_CLASS_INTERNAL;
using qlora::v1::FAILURE_CLASS_NUMERICAL;
using qlora::v1::FAILURE_CLASS_OOM;
using qlora::v1::FAILURE_CLASS_UNSPECIFIED;
using qlora::v1::FAILURE_CLASS_USER;
using qlora::v1::WorkerCommand;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kQueued = qlora::v1::JOB_STATE_QUEUED;
constexpr auto kStarting = qlora::v1::JOB_STATE_STARTING;
constexpr auto kRunning = qlora::v1::JOB_STATE_RUNNING;
constexpr auto kHeld = qlora::v1::JOB_STATE_HELD;
constexpr auto kBackoff = qlora::v1::JOB_STATE_BACKOFF;
constexpr auto kCancelling = qlora::v1::JOB_STATE_CANCELLING;
constexpr auto kSucceeded = qlora::v1::JOB_STATE_SUCCEEDED;
constexpr auto kFailed = qlora::v1::JOB_STATE_FAILED;
constexpr auto kCancelled = qlora::v1::JOB_STATE_CANCELLED;

// Fails the running job's attempt and waits until it runs again.
void FailAndRestart(CoreHarness& core, const std::string& id,
                    qlora::v1::FailureClass failure_class) {
  core.Ended("n1", id, failure_class);
  ASSERT_EQ(core.job(id).state(), kBackoff) << core.job(id).reason();
  core.Advance(absl::Seconds(20));
  core.Heartbeat("n1");
  ASSERT_EQ(core.job(id).state(), kStarting);
  core.Prepared("n1", id);
  core.Running("n1", id);
}

TEST(Job, OneRank_PreparesStartsCommitsSucceeds) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.Submit();
  EXPECT_EQ(core.job(id).state(), kStarting);
  EXPECT_EQ(core.job(id).attempt(), 1);
  core.Prepared("n1", id);
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStart), 1);
  core.Running("n1", id);
  EXPECT_EQ(core.job(id).state(), kRunning);
  core.Staged("n1", id, 0, 10);
  EXPECT_EQ(core.job(id).head_step(), 10);
  core.Staged("n1", id, 0, 20, /*final=*/true);
  EXPECT_EQ(core.job(id).state(), kRunning);
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED);
  EXPECT_EQ(core.job(id).state(), kSucceeded);
  EXPECT_EQ(core.job(id).output_size(), 1);
  EXPECT_EQ(core.job(id).head_step(), 20);
}

TEST(Job, GangOverTwoNodes_StartsOnlyWhenBothArePrepared) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.Submit(kTwoNodes);
  EXPECT_EQ(core.job(id).state(), kQueued);
  ASSERT_TRUE(core.Join("n2").ok());
  EXPECT_EQ(core.job(id).state(), kStarting);
  core.Prepared("n1", id);
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStart), 0);
  core.Prepared("n2", id);
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStart), 1);
  EXPECT_EQ(core.CountSent("n2", WorkerCommand::kStart), 1);
  core.Running("n1", id);
  EXPECT_EQ(core.job(id).state(), kStarting);
  core.Running("n2", id);
  EXPECT_EQ(core.job(id).state(), kRunning);
}

TEST(Job, CountsOfTheData_AreKeptOverACrash) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  ASSERT_TRUE(core.Join("n2").ok());
  const std::string id = core.Submit(kTwoNodes);
  core.Prepared("n1", id);
  core.Prepared("n2", id);
  core.Event("n1", id, [](auto& e) {
    e.mutable_running()->mutable_data()->set_records(58);
  });
  core.Running("n2", id);
  core.Restart();
  EXPECT_EQ(core.job(id).state(), kRunning);
  EXPECT_EQ(core.job(id).data().records(), 58);
}

TEST(Job, PrepareTimeout_ReleasesTheWholeGang) {
  CoreHarness core;
  core.state().timings.lease = absl::Hours(1);
  core.state().timings.reschedule_after = absl::Hours(2);
  ASSERT_TRUE(core.Join("n1").ok());
  ASSERT_TRUE(core.Join("n2").ok());
  const std::string id = core.Submit(kTwoNodes);
  core.Prepared("n1", id);
  core.Advance(core.state().timings.prepare_timeout);
  EXPECT_EQ(core.attempt(id).state(), ATTEMPT_STATE_DRAINING);
  EXPECT_NE(core.attempt(id).message().find("n2"), std::string::npos);
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStop), 1);
  EXPECT_EQ(core.CountSent("n2", WorkerCommand::kStop), 1);
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  EXPECT_EQ(core.attempt(id).state(), ATTEMPT_STATE_DRAINING);
  core.Ended("n2", id, FAILURE_CLASS_INFRA);
  EXPECT_EQ(core.job(id).state(), kBackoff);
  EXPECT_EQ(core.job(id).failure_class(), FAILURE_CLASS_INFRA);
}

TEST(Job, UserFailure_IsNotRetried) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Ended("n1", id, FAILURE_CLASS_USER);
  EXPECT_EQ(core.job(id).state(), kFailed);
  EXPECT_EQ(core.job(id).reason(), "the test says so");
  // Which says it all.
  EXPECT_EQ(core.job(id).hint(), "");
}

TEST(Job, InfraFailure_RestartsFromTheHeadCheckpoint) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 30);
  FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  EXPECT_EQ(core.job(id).restarts(), 1);
  EXPECT_EQ(core.attempt(id).resume_step(), 30);
  const auto sent = core.Sent("n1");
  const auto prepare =
      std::find_if(sent.rbegin(), sent.rend(),
                   [](const auto& c) { return c.has_prepare(); });
  EXPECT_EQ(prepare->prepare().resume_step(), 30);
  EXPECT_EQ(prepare->prepare().resume_files_size(), 1);
  EXPECT_EQ(prepare->prepare().attempt(), 2);
  // The same for every attempt.
  EXPECT_GT(core.job(id).create_time().seconds(), 0);
  EXPECT_EQ(prepare->prepare().job_create_time().seconds(),
            core.job(id).create_time().seconds());
}

TEST(Job, NoProgressInThreeAttempts_IsHeld) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "restart: {max: 10}\n");
  FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  core.Ended("n1", id, FAILURE_CLASS_INFRA);
  EXPECT_EQ(core.job(id).state(), kHeld);
}

// Runs the job's next attempt on n1, whose agent has a new boot id.
void RestartAgent(CoreHarness& core, const std::string& id,
                  const std::string& boot) {
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1", 1, boot).ok());
  ASSERT_EQ(core.job(id).state(), kBackoff) << core.job(id).reason();
  for (int i = 0; i < 20 && core.job(id).state() != kStarting; ++i) {
    core.Advance(absl::Seconds(20));
    core.Heartbeat("n1");
  }
  ASSERT_EQ(core.job(id).state(), kStarting) << core.job(id).reason();
  core.Prepared("n1", id);
  core.Running("n1", id);
}

TEST(Job, NodeThatGoesAndReturns_CostsNoRestart) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "restart: {max: 1}\n");
  FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  for (int i = 0; i < 9; ++i) {
    RestartAgent(core, id, "new-boot-" + std::to_string(i));
    core.Restart();
    const int attempt = core.job(id).attempt();
    ASSERT_TRUE(
        core.Join("n1", 1, "new-boot-" + std::to_string(i), {{id, attempt}})
            .ok());
    ASSERT_EQ(core.job(id).state(), kRunning);
  }
  EXPECT_EQ(core.job(id).restarts(), 1);
  core.Staged("n1", id, 0, 7);
  RestartAgent(core, id, "the-last");
  EXPECT_EQ(core.attempt(id).resume_step(), 7);
}

TEST(Job, JobThatTakesItsNodeDown_IsHeldInTheEnd) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  for (int i = 0; i < 9; ++i) {
    RestartAgent(core, id, "new-boot-" + std::to_string(i));
  }
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1", 1, "the-last").ok());
  EXPECT_EQ(core.job(id).state(), kHeld);
  EXPECT_THAT(core.job(id).reason(),
              HasSubstr("10 attempts lost a node before a newer checkpoint"));
}

TEST(Job, PeersOfANodeThatWent_CostNoRestart) {
  CoreHarness core;
  const std::string id = core.RunningGang();
  core.Disconnect("n2");
  core.Ended("n1", id, FAILURE_CLASS_INFRA);
  core.Advance(absl::Seconds(71));
  EXPECT_EQ(core.job(id).state(), kBackoff);
  EXPECT_EQ(core.job(id).restarts(), 0);
}

TEST(Job, PeersOfANodeThatDrains_CostNoRestart) {
  CoreHarness core;
  const std::string id = core.RunningGang();
  core.Ended("n1", id, FAILURE_CLASS_INFRA);
  core.Heartbeat("n2", /*draining=*/true);
  core.Ended("n2", id, FAILURE_CLASS_DRAINED);
  EXPECT_EQ(core.job(id).state(), kQueued);
  EXPECT_EQ(core.job(id).restarts(), 0);
  EXPECT_EQ(core.attempt(id).failure_class(), FAILURE_CLASS_DRAINED);
}

TEST(Job, PeersThatWereStopped_DoNotExcuseARankThatFailed) {
  CoreHarness core;
  const std::string id = core.RunningGang();
  core.Ended("n1", id, FAILURE_CLASS_INFRA);
  core.Ended("n2", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  EXPECT_EQ(core.job(id).restarts(), 1);
  EXPECT_EQ(core.attempt(id).failure_class(), FAILURE_CLASS_INFRA);
}

TEST(Job, RestartsWithProgress_EndAtRestartMax) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "restart: {max: 2}\n");
  for (int i = 1; i <= 2; ++i) {
    core.Staged("n1", id, 0, 10 * i);
    FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  }
  core.Staged("n1", id, 0, 30);
  core.Ended("n1", id, FAILURE_CLASS_INFRA);
  EXPECT_EQ(core.job(id).state(), kFailed);
  EXPECT_EQ(core.job(id).hint(), "qloractl logs " + id);
}

TEST(Job, NumericalFailure_IsReplayedOnceFromACheckpointThenHeld) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 30);
  FailAndRestart(core, id, FAILURE_CLASS_NUMERICAL);
  EXPECT_EQ(core.attempt(id).resume_step(), 30);
  core.Ended("n1", id, FAILURE_CLASS_NUMERICAL);
  EXPECT_EQ(core.job(id).state(), kHeld);
  EXPECT_EQ(core.job(id).failure_class(), FAILURE_CLASS_NUMERICAL);
  EXPECT_EQ(core.job(id).reason(),
            "again after a replay from the checkpoint of step 30, which is "
            "kept: the test says so");
  EXPECT_THAT(core.job(id).hint(),
              AllOf(HasSubstr("qloractl resume " + id),
                    HasSubstr("lower train.learning_rate")));
}

TEST(Job, NumericalFailureWithoutACheckpoint_IsHeldAtOnce) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Ended("n1", id, FAILURE_CLASS_NUMERICAL);
  EXPECT_EQ(core.job(id).state(), kHeld);
  EXPECT_EQ(core.job(id).restarts(), 0);
  EXPECT_THAT(core.job(id).reason(), HasSubstr("the test says so"));
  EXPECT_THAT(
      core.job(id).hint(),
      HasSubstr("submit -f job.yaml --set train.learning_rate=2e-05  # "));
}

int SentHalvings(const CoreHarness& core) {
  int halvings = -1;
  for (const WorkerCommand& command : core.Sent("n1")) {
    if (command.has_prepare()) {
      halvings = command.prepare().micro_batch_halvings();
    }
  }
  return halvings;
}

TEST(Job, OutOfMemory_HalvesTheMicroBatchThreeTimesThenIsHeld) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "restart: {max: 9}\n");
  EXPECT_EQ(SentHalvings(core), 0);
  for (int i = 1; i <= 3; ++i) {
    FailAndRestart(core, id, FAILURE_CLASS_OOM);
    EXPECT_EQ(core.job(id).micro_batch_halvings(), i);
    EXPECT_EQ(SentHalvings(core), i);
  }
  core.Ended("n1", id, FAILURE_CLASS_OOM);
  EXPECT_EQ(core.job(id).state(), kHeld);
  EXPECT_THAT(core.job(id).reason(), HasSubstr("3 attempts to hold less"));
  EXPECT_EQ(core.job(id).failure_class(), FAILURE_CLASS_OOM);
  EXPECT_THAT(core.job(id).hint(), HasSubstr("after giving the node more"));
}

// Of a node without room for the job, too.
TEST(Job, OutOfMemory_StartsOnAnotherNode) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  ASSERT_TRUE(core.Join("n2").ok());
  core.Ended("n1", id, FAILURE_CLASS_OOM);
  ASSERT_EQ(core.job(id).state(), kBackoff) << core.job(id).reason();
  core.Advance(absl::Seconds(20));
  core.Heartbeat("n1");
  core.Heartbeat("n2");
  ASSERT_EQ(core.job(id).state(), kStarting);
  EXPECT_EQ(core.job(id).ranks(0).node(), "n2");
}

TEST(Job, OutOfMemoryWithNothingLeftToSave_IsHeldAtOnce) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  FailAndRestart(core, id, FAILURE_CLASS_OOM);
  core.Event("n1", id, [](auto& e) {
    e.mutable_ended()->set_failure_class(FAILURE_CLASS_OOM);
    e.mutable_ended()->set_message("nothing is left to save");
    e.mutable_ended()->set_least_memory(true);
  });
  EXPECT_EQ(core.job(id).state(), kHeld);
  EXPECT_EQ(core.job(id).reason(), "nothing is left to save");
  EXPECT_EQ(core.job(id).micro_batch_halvings(), 1);
  EXPECT_THAT(core.job(id).hint(), HasSubstr("after giving the node more"));
  core.Do([&](Draft& draft) { EXPECT_TRUE(ResumeJob(draft, id).ok()); });
  EXPECT_EQ(SentHalvings(core), 0);
}

TEST(Job, Resume_AfterOutOfMemoryTriesWholeMicroBatchesAgain) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "restart: {max: 9}\n");
  for (int i = 1; i <= 3; ++i) FailAndRestart(core, id, FAILURE_CLASS_OOM);
  core.Ended("n1", id, FAILURE_CLASS_OOM);
  core.Do([&](Draft& draft) { EXPECT_TRUE(ResumeJob(draft, id).ok()); });
  EXPECT_EQ(SentHalvings(core), 0);
  core.Prepared("n1", id);
  core.Running("n1", id);
  FailAndRestart(core, id, FAILURE_CLASS_OOM);
  EXPECT_EQ(SentHalvings(core), 1);
  // What worked stays when something else held the job.
  core.Ended("n1", id, FAILURE_CLASS_DISK);
  core.Do([&](Draft& draft) { EXPECT_TRUE(ResumeJob(draft, id).ok()); });
  EXPECT_EQ(SentHalvings(core), 1);
}

TEST(Job, OtherFailureAfterOutOfMemory_KeepsTheHalvedMicroBatch) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  FailAndRestart(core, id, FAILURE_CLASS_OOM);
  core.Staged("n1", id, 0, 5);
  FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  EXPECT_EQ(SentHalvings(core), 1);
}

TEST(Job, OutOfMemory_CountsAsARestart) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "restart: {max: 0}\n");
  core.Ended("n1", id, FAILURE_CLASS_OOM);
  EXPECT_EQ(core.job(id).state(), kFailed);
}

TEST(Job, FullDisk_IsHeldAndNamesTheNode) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Ended("n1", id, FAILURE_CLASS_DISK);
  EXPECT_EQ(core.job(id).state(), kHeld);
  EXPECT_EQ(core.job(id).reason(), "n1: the test says so");
  EXPECT_THAT(core.job(id).hint(), HasSubstr("after making space"));
}

absl::Status TryResume(CoreHarness& core, const std::string& id) {
  absl::Status status;
  core.Do([&](Draft& draft) { status = ResumeJob(draft, id); });
  return status;
}

TEST(Job, Resume_GoesOnFromTheHeadCheckpoint) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 30);
  core.Ended("n1", id, FAILURE_CLASS_DISK);
  ASSERT_EQ(core.job(id).state(), kHeld);
  // The evidence is in the database.
  core.Restart();
  ASSERT_TRUE(core.Join("n1").ok());
  core.now += absl::Minutes(5);
  ASSERT_TRUE(TryResume(core, id).ok());
  EXPECT_EQ(core.job(id).state(), kStarting);
  EXPECT_EQ(core.job(id).attempt(), 2);
  EXPECT_EQ(core.attempt(id).resume_step(), 30);
  EXPECT_EQ(core.job(id).hint(), "");
  EXPECT_EQ(core.job(id).failure_class(), FAILURE_CLASS_UNSPECIFIED);
  EXPECT_EQ(core.job(id).last_failure().attempt(), 1);
  EXPECT_EQ(core.job(id).last_failure().failure_class(), FAILURE_CLASS_DISK);
  EXPECT_EQ(core.job(id).last_failure().head_step(), 30);
  core.Prepared("n1", id);
  core.Running("n1", id);
  core.Staged("n1", id, 0, 60, /*final=*/true);
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED);
  EXPECT_EQ(core.job(id).state(), kSucceeded);
  EXPECT_EQ(core.job(id).last_failure().message(), "the test says so");
}

TEST(Job, Resume_CountsRestartsAnew) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "restart: {max: 2}\n");
  for (int round = 0; round < 2; ++round) {
    FailAndRestart(core, id, FAILURE_CLASS_INFRA);
    FailAndRestart(core, id, FAILURE_CLASS_INFRA);
    core.Ended("n1", id, FAILURE_CLASS_INFRA);
    ASSERT_EQ(core.job(id).state(), kHeld);
    ASSERT_TRUE(TryResume(core, id).ok());
    core.Prepared("n1", id);
    core.Running("n1", id);
  }
  EXPECT_EQ(core.job(id).restarts(), 4);
  core.Staged("n1", id, 0, 10);
  FailAndRestart(core, id, FAILURE_CLASS_NUMERICAL);
  EXPECT_EQ(core.job(id).state(), kRunning);
}

TEST(Job, Resume_OfAJobThatIsNotHeldIsRefused) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const auto refused = [&](const std::string& id, const std::string& why) {
    const absl::Status status = TryResume(core, id);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("only a HELD job"), HasSubstr(why)));
  };
  const std::string id = core.RunningJob("n1");
  refused(id, "is RUNNING");
  const std::string waits = core.Submit();
  refused(waits, "is QUEUED");
  core.Ended("n1", id, FAILURE_CLASS_INFRA);
  refused(id, "starts again by itself");
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "").ok()); });
  refused(id, "is CANCELLED");
}

TEST(Job, Resume_DeadlineCountsAnew) {
  CoreHarness core;
  core.state().timings.lease = absl::Hours(100);
  core.state().timings.reschedule_after = absl::Hours(200);
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "deadline: 10m\n");
  core.Ended("n1", id, FAILURE_CLASS_DISK);
  core.Advance(absl::Hours(3));
  ASSERT_TRUE(TryResume(core, id).ok());
  core.Prepared("n1", id);
  core.Running("n1", id);
  core.Advance(absl::Minutes(9));
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStop), 0);
  core.Advance(absl::Minutes(2));
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStop), 1);
}

void EndUnusable(CoreHarness& core, const std::string& id) {
  core.Event("n1", id, [](auto& e) {
    e.mutable_ended()->set_failure_class(FAILURE_CLASS_INFRA);
    e.mutable_ended()->set_message("adam_m.safetensors is damaged");
    e.mutable_ended()->set_checkpoint_unusable(true);
  });
}

TEST(Job, UnusableCheckpoint_IsSetAsideForTheOneBefore) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 10);
  core.Staged("n1", id, 0, 20);
  FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  ASSERT_EQ(core.attempt(id).resume_step(), 20);
  EndUnusable(core, id);
  EXPECT_THAT(core.job(id).reason(), HasSubstr("starts again from step 10"));
  core.Restart();
  core.Advance(absl::Seconds(20));
  ASSERT_TRUE(core.Join("n1").ok());
  EXPECT_EQ(core.attempt(id).resume_step(), 10);
  EXPECT_EQ(core.job(id).head_step(), 20);
  EXPECT_EQ(core.state().checkpoints.at({id, 20}).state(),
            qlora::v1::CHECKPOINT_STATE_CORRUPT);
  // Its place is taken when the step is reached again.
  core.Prepared("n1", id);
  core.Running("n1", id);
  core.Staged("n1", id, 0, 20);
  EXPECT_EQ(core.state().checkpoints.at({id, 20}).state(),
            qlora::v1::CHECKPOINT_STATE_COMMITTED);
  EXPECT_EQ(core.state().checkpoints.at({id, 20}).attempt(), 3);
}

TEST(Job, TheOnlyCheckpointUnusable_IsHeldAndStartsFromTheBeginning) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 10);
  FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  EndUnusable(core, id);
  EXPECT_EQ(core.job(id).state(), kHeld);
  EXPECT_THAT(core.job(id).reason(), HasSubstr("no checkpoint is left"));
  EXPECT_EQ(core.job(id).hint(),
            "qloractl resume " + id + "  # starts from the beginning");
  ASSERT_TRUE(TryResume(core, id).ok());
  EXPECT_EQ(core.attempt(id).resume_step(), 0);
}

TEST(Job, DrainedNode_RequeuesUncounted) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Heartbeat("n1", /*draining=*/true);
  core.Staged("n1", id, 0, 17);
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  EXPECT_EQ(core.job(id).state(), kQueued) << core.job(id).reason();
  EXPECT_EQ(core.job(id).restarts(), 0);
  EXPECT_EQ(core.job(id).head_step(), 17);
  ASSERT_TRUE(core.Join("n2").ok());
  EXPECT_EQ(core.attempt(id).resume_step(), 17);
}

TEST(Job, DrainedNodeOfAGang_LetsTheOthersSave) {
  for (const auto why : {FAILURE_CLASS_DRAINED, FAILURE_CLASS_UNSPECIFIED,
                         qlora::v1::FAILURE_CLASS_PREEMPTED}) {
    CoreHarness core;
    const std::string id = core.RunningGang();
    // Every rank saves the same step; rank 0's is still on its way.
    core.Heartbeat("n2", /*draining=*/true);
    core.Staged("n2", id, 1, 17);
    core.Ended("n2", id, why, /*stopped=*/true);
    ASSERT_EQ(core.CountSent("n1", WorkerCommand::kStop), 1);
    EXPECT_TRUE(core.Sent("n1").back().stop().save());
    core.Staged("n1", id, 0, 17);
    core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
    EXPECT_EQ(core.job(id).head_step(), 17);
    EXPECT_EQ(core.job(id).state(), kQueued);
    EXPECT_EQ(core.job(id).restarts(), 0);
  }
}

TEST(Job, DrainedBeforeItSaved_StopsTheOthersAtOnce) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  ASSERT_TRUE(core.Join("n2").ok());
  const std::string id = core.Submit(kTwoNodes);
  core.Ended("n2", id, FAILURE_CLASS_DRAINED);
  EXPECT_FALSE(core.Sent("n1").back().stop().save());
}

TEST(Job, CheckpointOfTooManyFiles_IsNotCommitted) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Event("n1", id, [](auto& e) {
    auto& staged = *e.mutable_staged();
    staged.set_step(5);
    staged.set_state_sha256("same");
    staged.add_files()->set_path(std::string(kMaxStagedBytes, 'x'));
  });
  EXPECT_EQ(core.job(id).head_step(), 0);
  core.Staged("n1", id, 0, 6);
  EXPECT_EQ(core.job(id).head_step(), 6);
}

TEST(Job, DefiniteCause_WinsOverItsConsequences) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  ASSERT_TRUE(core.Join("n2").ok());
  const std::string id = core.Submit(kTwoNodes);
  // The peer's loss is reported before the cause.
  core.Ended("n1", id, FAILURE_CLASS_INFRA);
  core.Ended("n2", id, FAILURE_CLASS_USER);
  EXPECT_EQ(core.job(id).state(), kFailed);
  EXPECT_EQ(core.job(id).failure_class(), FAILURE_CLASS_USER);
}

TEST(Job, Checkpoint_CommitsWhenAllRanksStagedTheSame) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 2).ok());
  const std::string id =
      core.RunningJob("n1", "resources: {devices_per_node: 2}\n");
  core.Staged("n1", id, 0, 5);
  EXPECT_EQ(core.job(id).head_step(), 0);
  core.Staged("n1", id, 0, 5);
  EXPECT_EQ(core.job(id).head_step(), 0);
  core.Staged("n1", id, 1, 5);
  EXPECT_EQ(core.job(id).head_step(), 5);
  core.Staged("n1", id, 1, 3);
  core.Staged("n1", id, 0, 3);
  EXPECT_EQ(core.job(id).head_step(), 5);
}

TEST(Job, ShareOfAnothersRank_CommitsNothing) {
  CoreHarness core;
  const std::string id = core.RunningGang();
  core.Staged("n2", id, 0, 5);
  core.Staged("n2", id, 1, 5);
  core.Staged("n1", id, -1, 5);
  EXPECT_EQ(core.job(id).head_step(), 0);
  // Said again and again it takes no more room.
  for (int i = 0; i < 9; ++i) core.Staged("n2", id, 1, 5);
  EXPECT_EQ(core.attempt(id).staged_size(), 1);
  core.Staged("n1", id, 0, 5);
  EXPECT_EQ(core.job(id).head_step(), 5);
}

TEST(Job, DivergedRanks_AreStoppedAsADefect) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 2).ok());
  const std::string id =
      core.RunningJob("n1", "resources: {devices_per_node: 2}\n");
  core.Staged("n1", id, 0, 5, false, "one");
  core.Staged("n1", id, 1, 5, false, "other");
  EXPECT_EQ(core.job(id).head_step(), 0);
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStop), 1);
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  EXPECT_EQ(core.job(id).failure_class(), FAILURE_CLASS_INTERNAL);
}

TEST(Job, CheckpointThatARankSaidNothingOf_IsToldAsLost) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 2).ok());
  const std::string id =
      core.RunningJob("n1", "resources: {devices_per_node: 2}\n");
  core.Staged("n1", id, 0, 5);
  core.Disconnect("n1");
  std::vector<std::string> told;
  for (const Effect& effect : core.Do([&](Draft& draft) {
         LosePart(draft, {id, 1}, "n1", "the test says so");
       })) {
    const auto* line = std::get_if<AppendEvent>(&effect);
    if (line == nullptr || line->event.type() != "CheckpointLost") continue;
    told.push_back(line->event.message());
  }
  EXPECT_THAT(told, testing::ElementsAre("step 5 was not committed: nothing "
                                         "came of it from rank 1"));
}

TEST(Job, Checkpoints_OlderThanKeepAreForgotten) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "checkpoint: {keep: 2}\n");
  for (int step = 1; step <= 5; ++step) core.Staged("n1", id, 0, step);
  std::vector<int64_t> steps;
  for (const auto& [key, unused] : core.state().checkpoints) {
    steps.push_back(key.second);
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{4, 5}));
}

TEST(Job, FinalAtTheHead_AfterAResumeWithNothingLeft_Succeeds) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 20);
  FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  core.Staged("n1", id, 0, 20, /*final=*/true);
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED);
  EXPECT_EQ(core.job(id).state(), kSucceeded);
}

TEST(Job, LostAfterItsFinalCheckpoint_HasSucceeded) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 20, /*final=*/true);
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1", 1, "boot-2").ok());
  EXPECT_EQ(core.job(id).state(), kSucceeded);
}

TEST(Job, CompleteWithoutAFinalCheckpoint_IsADefect) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED);
  EXPECT_EQ(core.job(id).failure_class(), FAILURE_CLASS_INTERNAL);
  EXPECT_EQ(core.job(id).state(), kBackoff);
}

TEST(Job, Deadline_StopsTheJob) {
  CoreHarness core;
  core.state().timings.lease = absl::Hours(1);
  core.state().timings.reschedule_after = absl::Hours(2);
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1", "deadline: 10m\n");
  core.Advance(absl::Minutes(9));
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStop), 0);
  core.Advance(absl::Minutes(2));
  EXPECT_EQ(core.CountSent("n1", WorkerCommand::kStop), 1);
  core.Ended("n1", id, FAILURE_CLASS_UNSPECIFIED, /*stopped=*/true);
  EXPECT_EQ(core.job(id).state(), kFailed);
  EXPECT_NE(core.job(id).reason().find("deadline"), std::string::npos);
}

TEST(Job, StaleAttemptsEvents_AreDropped) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  FailAndRestart(core, id, FAILURE_CLASS_INFRA);
  core.Event(
      "n1", id,
      [](auto& e) {
        e.mutable_staged()->set_step(99);
        e.mutable_staged()->set_state_sha256("x");
      },
      /*attempt=*/1);
  EXPECT_EQ(core.job(id).head_step(), 0);
  // Nor of one that had the number in another life of the database.
  core.Event("n1", id, [](auto& e) {
    e.set_term(e.term() - 1);
    e.mutable_staged()->set_step(98);
    e.mutable_staged()->set_state_sha256("x");
  });
  EXPECT_EQ(core.job(id).head_step(), 0);
  // Nor those of a node that has no part in the attempt.
  ASSERT_TRUE(core.Join("n2").ok());
  core.Staged("n2", id, 0, 50);
  EXPECT_EQ(core.job(id).head_step(), 0);
}

}  // namespace
}  // namespace qlora::server
