#include "server/core/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_harness.h"

namespace qlora::server {
namespace {

using qlora::v1::Decision;
using ::testing::ElementsAre;

qlora::v1::Hello HelloOf(CoreHarness& core, const std::string& node) {
  qlora::v1::Hello hello;
  hello.set_node(node);
  hello.set_boot_id("boot-1");
  hello.set_cluster_id(core.state().cluster_id);
  return hello;
}

// Types of the events that the transaction tells of.
std::vector<std::string> Told(const std::vector<Effect>& effects) {
  std::vector<std::string> types;
  for (const Effect& effect : effects) {
    if (const auto* line = std::get_if<AppendEvent>(&effect)) {
      types.push_back(line->event.type());
    }
  }
  return types;
}

TEST(Membership, MalformedHello_IsRefused) {
  CoreHarness core;
  EXPECT_EQ(core.Join("").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(core.Join("a b").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(core.Join("n1", 1, "").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Membership, SecondWorkerOfTheName_IsRefusedWhileTheFirstIsConnected) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 1, "boot-1").ok());
  const absl::Status taken = core.Join("n1", 1, "boot-2").status();
  EXPECT_EQ(taken.code(), absl::StatusCode::kAlreadyExists);
  for (const char* part : {"\"n1\"", "the process of boot-1", "--node-name"}) {
    EXPECT_NE(taken.message().find(part), absl::string_view::npos) << taken;
  }
  core.Disconnect("n1");
  EXPECT_TRUE(core.Join("n1", 1, "boot-2").ok());
}

TEST(Membership, NewerStreamOfTheSameBoot_ReplacesTheOlder) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const uint64_t first = core.state().nodes.at("n1").stream;
  ASSERT_TRUE(core.Join("n1").ok());
  EXPECT_NE(core.state().nodes.at("n1").stream, first);
  // The old stream's end changes nothing.
  core.Do([&](Draft& d) { OnDisconnect(d, "n1", first); });
  EXPECT_NE(core.state().nodes.at("n1").stream, 0u);
}

TEST(Membership, MissedLease_UnreachableThenDownThenLost) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Advance(absl::Seconds(31));
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_UNREACHABLE);
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_RUNNING);
  core.Advance(absl::Seconds(90));
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_DOWN);
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_BACKOFF);
  const auto welcome = core.Join("n1", 1, "boot-1", {{id, 1}});
  ASSERT_TRUE(welcome.ok());
  EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_KILL);
}

TEST(Membership, NodeThatWasGivenUp_IsNotHeardByAStart) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  ASSERT_TRUE(core.Join("n1").ok());
  ASSERT_TRUE(core.Join("n2").ok());
  core.Disconnect("n1");
  core.Advance(absl::Seconds(31));
  core.Heartbeat("n2");
  core.Advance(absl::Seconds(90));
  ASSERT_EQ(core.node("n1"), qlora::v1::NODE_STATE_DOWN);
  core.Restart();
  const auto heard = [&](const std::string& name) {
    return NodeView(core.state(), core.state().nodes.at(name))
        .has_last_heartbeat();
  };
  EXPECT_FALSE(heard("n1"));
  EXPECT_TRUE(heard("n2"));
  core.Advance(absl::Seconds(200));
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_DOWN);
}

TEST(Membership, ReturnWithinTheTime_KeepsTheRanks) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Disconnect("n1");
  core.Advance(absl::Seconds(60));
  const auto welcome = core.Join("n1", 1, "boot-1", {{id, 1}});
  ASSERT_TRUE(welcome.ok());
  EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_KEEP);
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_READY);
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_RUNNING);
}

TEST(Membership, NewBoot_LosesWhatRan) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 7);
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1", 1, "boot-2").ok());
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_BACKOFF);
  EXPECT_EQ(core.attempt(id).state(), ATTEMPT_STATE_LOST);
  core.Advance(absl::Seconds(3));
  EXPECT_EQ(core.attempt(id).resume_step(), 7);
}

// It was told to end while this coordinator was away, and kept what was staged.
TEST(Membership, NewBootThatNamesTheAttempt_HandsInWhatIsLeft) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Restart();
  const auto welcome = core.Join("n1", 1, "boot-2", {{id, 1}});
  ASSERT_TRUE(welcome.ok());
  EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_KEEP);
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_RUNNING);
  core.Staged("n1", id, 0, 79);
  core.Ended("n1", id, qlora::v1::FAILURE_CLASS_DRAINED, /*stopped=*/true);
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_STARTING);
  EXPECT_FALSE(core.job(id).has_last_failure());
  EXPECT_EQ(core.attempt(id).resume_step(), 79);
}

// Each start of the agent is told apart from the one before.
TEST(Membership, NewBootAfterTheOneThatKeptIt_LosesIt) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1", 1, "boot-2", {{id, 1}}).ok());
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1", 1, "boot-3").ok());
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_BACKOFF);
  EXPECT_EQ(core.attempt(id).state(), ATTEMPT_STATE_LOST);
}

TEST(Membership, AgentThatForgotItsAttempt_LosesIt) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Disconnect("n1");
  ASSERT_TRUE(core.Join("n1", 1, "boot-1", {}).ok());
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_BACKOFF);
}

TEST(Membership, PrepareThatWasNotSeen_IsNotLost) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.Submit();
  core.Disconnect("n1");
  qlora::v1::Hello hello;
  hello.set_node("n1");
  hello.set_boot_id("boot-1");
  hello.set_cluster_id(core.state().cluster_id);
  core.Do([&](Draft& d) { EXPECT_TRUE(OnHello(d, hello, 77).ok()); });
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_STARTING);
}

TEST(Membership, LostBeforeItsPrepareArrived_IsStoppedWhenItReturns) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  ASSERT_TRUE(core.Join("n1").ok());
  ASSERT_TRUE(core.Join("n2").ok());
  const std::string id = core.Submit(kTwoNodes);
  core.Prepared("n1", id);
  core.Disconnect("n2");
  for (int i = 0; i < 5; ++i) {
    core.Advance(absl::Seconds(25));
    core.Heartbeat("n1");
  }
  EXPECT_EQ(core.node("n2"), qlora::v1::NODE_STATE_DOWN);
  EXPECT_EQ(core.attempt(id).state(), ATTEMPT_STATE_DRAINING);
  const auto sent = core.Sent("n2");
  ASSERT_EQ(sent.size(), 2u);
  EXPECT_TRUE(sent[0].has_prepare());
  EXPECT_EQ(sent[1].stop().attempt(), 1);
  EXPECT_EQ(core.CountSent("n1", qlora::v1::WorkerCommand::kStop), 1);
}

TEST(Membership, UnknownAttempt_IsHeldNotKilled) {
  CoreHarness core;
  const auto welcome = core.Join("n1", 1, "boot-1", {{"j-of-another-life", 3}});
  ASSERT_TRUE(welcome.ok());
  EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_HOLD);
}

// A copy of the database from before attempt 3 was restored.
TEST(Membership, UnknownAttemptOfAKnownJob_IsHeldAndItsNumberNotUsedAgain) {
  CoreHarness core;
  const std::string id = core.Submit();
  const auto welcome = core.Join("n1", 1, "boot-1", {{id, 3}});
  ASSERT_TRUE(welcome.ok());
  EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_HOLD);
  EXPECT_EQ(core.job(id).attempt(), 4);
  core.Restart();
  EXPECT_EQ(core.attempt(id).attempt(), 4);
}

// A connection that breaks again and again must not fill the job's events.
TEST(Membership, UnknownAttempt_IsToldOfOnce) {
  CoreHarness core;
  const std::string id = core.Submit();
  qlora::v1::Hello hello;
  hello.set_node("n1");
  hello.set_boot_id("boot-1");
  hello.set_cluster_id(core.state().cluster_id);
  auto& item = *hello.add_inventory();
  item.set_job_id(id);
  item.set_attempt(3);
  item.set_term(1);
  int told = 0;
  for (uint64_t stream = 1; stream <= 3; ++stream) {
    const auto effects = core.Do(
        [&](Draft& draft) { ASSERT_TRUE(OnHello(draft, hello, stream).ok()); });
    for (const Effect& effect : effects) {
      const auto* line = std::get_if<AppendEvent>(&effect);
      told += line != nullptr && line->event.type() == "AttemptHeld";
    }
  }
  EXPECT_EQ(told, 1);
}

TEST(Membership, AttemptOfAnotherTerm_IsHeldAndIsNotOurs) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Disconnect("n1");
  core.Restart();
  qlora::v1::Hello hello;
  hello.set_node("n1");
  hello.set_boot_id("boot-1");
  hello.set_cluster_id(core.state().cluster_id);
  hello.set_last_command_seen(2);
  auto& item = *hello.add_inventory();
  item.set_job_id(id);
  item.set_attempt(1);
  item.set_term(core.state().term);
  core.Do([&](Draft& d) {
    const auto welcome = OnHello(d, hello, 77);
    ASSERT_TRUE(welcome.ok()) << welcome.status();
    EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_HOLD);
  });
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_BACKOFF);
}

TEST(Membership, RestoredDatabase_NumbersCommandsAfterThoseTheNodeHas) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  core.Disconnect("n1");
  core.state().nodes.at("n1").record.set_last_command(40);
  const std::string id = core.Submit();
  qlora::v1::Hello hello;
  hello.set_node("n1");
  hello.set_boot_id("boot-1");
  hello.set_cluster_id(core.state().cluster_id);
  hello.set_last_command_seen(43);
  auto& device = *hello.add_devices();
  device.set_name("cpu:0");
  device.set_kind("cpu");
  core.Do([&](Draft& d) { EXPECT_TRUE(OnHello(d, hello, 77).ok()); });
  ASSERT_EQ(core.Sent("n1").size(), 1u);
  EXPECT_EQ(core.Sent("n1")[0].number(), 44u);
}

TEST(Membership, PrepareSentAgainAfterARestart_NamesTheSameAttempt) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.Submit();
  const int64_t term = core.state().term;
  core.Disconnect("n1");
  core.Restart();
  const auto sent = core.Sent("n1");
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].term(), core.state().term);
  EXPECT_EQ(sent[0].prepare().term(), term);
  EXPECT_EQ(core.attempt(id).term(), term);
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "").ok()); });
  EXPECT_EQ(core.Sent("n1").back().stop().term(), term);
}

TEST(Membership, QuarantinedNodeThatFallsSilent_LosesItsOtherJobs) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  ASSERT_TRUE(core.Join("n1", 2).ok());
  const std::string stuck = core.RunningJob("n1");
  const std::string other = core.RunningJob("n1");
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, stuck, "").ok()); });
  for (int i = 0; i < 8; ++i) {
    core.Heartbeat("n1");
    core.Advance(absl::Seconds(10));
  }
  ASSERT_EQ(core.node("n1"), qlora::v1::NODE_STATE_QUARANTINED);
  EXPECT_EQ(core.job(other).state(), qlora::v1::JOB_STATE_RUNNING);
  core.Advance(absl::Seconds(31));
  EXPECT_EQ(core.state().nodes.at("n1").stream, 0u);
  EXPECT_EQ(core.job(other).state(), qlora::v1::JOB_STATE_RUNNING);
  core.Advance(absl::Seconds(90));
  EXPECT_EQ(core.job(other).state(), qlora::v1::JOB_STATE_BACKOFF);
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_QUARANTINED);
}

TEST(Membership, DeletedJobsAttempt_IsKilled) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Do([&](Draft& d) { DeleteJob(d, id); });
  core.Disconnect("n1");
  core.Advance(absl::Seconds(200));
  core.Advance(absl::Seconds(200));
  ASSERT_FALSE(core.state().jobs.contains(id));
  const auto welcome = core.Join("n1", 1, "boot-1", {{id, 1}});
  EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_KILL);
  // The record was kept for that only.
  EXPECT_TRUE(core.state().attempts.contains({id, 1}));
  core.Do([&](Draft& d) {
    qlora::v1::WorkerEvent event;
    event.set_job_id(id);
    event.set_attempt(1);
    event.set_term(core.state().attempts.at({id, 1}).term());
    event.mutable_ended();
    OnAttemptEvent(d, "n1", event);
  });
  EXPECT_TRUE(core.state().attempts.empty());
  core.Restart();
  EXPECT_TRUE(core.state().attempts.empty());
}

TEST(Membership, DeletedJobsAttempt_IsForgottenWhenItsNodeReturnsWithoutIt) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Disconnect("n1");
  core.Do([&](Draft& d) { DeleteJob(d, id); });
  EXPECT_TRUE(core.state().attempts.contains({id, 1}));
  ASSERT_TRUE(core.Join("n1", 1, "boot-2").ok());
  EXPECT_TRUE(core.state().attempts.empty());
}

// It would make the ranks when the node is back.
TEST(Membership, DeletedJobsAttempt_StaysWhileItsPrepareIsOnItsWay) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.Submit();
  core.Disconnect("n1");
  core.Do([&](Draft& d) { DeleteJob(d, id); });
  ASSERT_FALSE(core.state().jobs.contains(id));
  qlora::v1::Hello hello;
  hello.set_node("n1");
  hello.set_boot_id("boot-1");
  hello.set_cluster_id(core.state().cluster_id);
  core.Do([&](Draft& d) { EXPECT_TRUE(OnHello(d, hello, 77).ok()); });
  EXPECT_TRUE(core.state().attempts.contains({id, 1}));
}

TEST(Membership, ReturnOfASilentNode_IsToldOfOnlyWhenItReturns) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  const std::string id = core.RunningGang();
  const auto after = [&](int seconds) {
    core.now += absl::Seconds(seconds);
    core.Heartbeat("n1");
    return Told(core.Do([](Draft& draft) { CheckLeases(draft); }));
  };
  EXPECT_THAT(after(31), ElementsAre("NodeUnreachable"));
  qlora::v1::Hello hello = HelloOf(core, "n2");
  auto& item = *hello.add_inventory();
  item.set_job_id(id);
  item.set_attempt(1);
  item.set_term(core.attempt(id).term());
  EXPECT_THAT(Told(core.Do([&](Draft& draft) {
                EXPECT_TRUE(OnHello(draft, hello, 77).ok());
              })),
              ElementsAre("NodeReturned"));
  EXPECT_THAT(after(31), ElementsAre("NodeUnreachable"));
  EXPECT_THAT(after(90), ElementsAre("RanksLost"));
  EXPECT_EQ(core.job(id).reason(), "");
}

TEST(Membership, SilentNodeOfARunningJob_IsNamedWithItsTimes) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 7);
  EXPECT_EQ(core.job(id).reason(), "");
  // 22:23:20, by the harness's clock.
  core.now = absl::FromUnixSeconds(1'700'001'000 - 200);
  core.Heartbeat("n1");
  core.Advance(absl::Seconds(31));
  EXPECT_EQ(core.job(id).reason(),
            "node n1 is unreachable since 22:26:40 UTC and waited for until "
            "22:28:40 UTC; without it the job starts again from step 7");
  ASSERT_TRUE(core.Join("n1", 1, "boot-1", {{id, 1}}).ok());
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_RUNNING);
  EXPECT_EQ(core.job(id).reason(), "");
}

// As long as the coordinator was not there it heard nobody.
TEST(Membership, SilenceAfterAStart_IsNamedAfterTheLease) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Restart();
  core.Advance(absl::Seconds(29));
  EXPECT_EQ(core.job(id).reason(), "");
  core.Advance(absl::Seconds(1));
  EXPECT_EQ(core.job(id).reason(),
            "node n1 is unreachable since 22:13:20 UTC and waited for until "
            "22:18:20 UTC; without it the job starts again from the beginning");
}

TEST(Membership, OtherClustersNode_IsRefused) {
  CoreHarness core;
  qlora::v1::Hello hello;
  hello.set_node("n1");
  hello.set_boot_id("b");
  hello.set_cluster_id("c-other");
  core.Do([&](Draft& d) {
    EXPECT_EQ(OnHello(d, hello, 1).status().code(),
              absl::StatusCode::kFailedPrecondition);
  });
}

TEST(Membership, CoordinatorRestart_KeepsWhatTheNodeStillHas) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Staged("n1", id, 0, 7);
  const int64_t term = core.state().term;
  core.Restart();
  EXPECT_GT(core.state().term, term);
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_RUNNING);
  // Longer than reschedule_after: nodes get more time after a start.
  core.Advance(absl::Seconds(200));
  const auto welcome = core.Join("n1", 1, "boot-1", {{id, 1}});
  EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_KEEP);
  core.Staged("n1", id, 0, 14, /*final=*/true);
  core.Ended("n1", id, qlora::v1::FAILURE_CLASS_UNSPECIFIED);
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_SUCCEEDED);
}

TEST(Membership, NewSpool_StartsEventNumbersAgain) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  core.state().nodes.at("n1").record.set_last_event(40);
  core.Disconnect("n1");
  const auto same = core.Join("n1", 1, "boot-1");
  EXPECT_EQ(same->resend_from(), 41u);
  core.Disconnect("n1");
  const auto fresh = core.Join("n1", 1, "boot-2", {}, /*new_spool=*/true);
  EXPECT_EQ(fresh->resend_from(), 1u);
}

TEST(Membership, DrainingNode_GetsNoWorkAndEndsDrained) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  core.Heartbeat("n1", /*draining=*/true);
  const std::string id = core.Submit();
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_QUEUED);
  core.Disconnect("n1");
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_DRAINED);
}

// The ranks that are cancelled end with it.
TEST(Membership, DrainingNodeThatGoesWhileItsJobIsCancelled_IsDrained) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Heartbeat("n1", /*draining=*/true);
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "").ok()); });
  core.Disconnect("n1");
  EXPECT_EQ(core.job(id).state(), qlora::v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_DRAINED);
}

// The coordinator goes on from them, and must know its own again.
TEST(Membership, LargestNumbersOfANode_LeadToNoneThatIsRefused) {
  CoreHarness core;
  const std::string id = core.Submit();
  qlora::v1::Hello hello = HelloOf(core, "n1");
  hello.set_last_command_seen(uint64_t{1} << 60);
  auto& device = *hello.add_devices();
  device.set_name("cpu:0");
  device.set_kind("cpu");
  auto& item = *hello.add_inventory();
  item.set_job_id(id);
  item.set_attempt(1 << 30);
  item.set_term(int64_t{1} << 60);
  const auto decision = [&] {
    absl::StatusOr<qlora::v1::Welcome> welcome =
        absl::InternalError("not called");
    core.Do([&](Draft& draft) { welcome = OnHello(draft, hello, 77); });
    EXPECT_TRUE(welcome.ok()) << welcome.status();
    return welcome.ok() ? welcome->decisions(0).action()
                        : Decision::ACTION_UNSPECIFIED;
  };
  EXPECT_EQ(decision(), Decision::ACTION_HOLD);
  ASSERT_EQ(core.job(id).attempt(), (1 << 30) + 1);
  // As RaiseTerm leaves it.
  core.state().term = (int64_t{1} << 60) + 1;
  hello.set_term(core.state().term);
  hello.set_last_command_seen(core.Sent("n1").back().number());
  item.set_attempt(core.job(id).attempt());
  item.set_term(core.attempt(id).term());
  EXPECT_EQ(decision(), Decision::ACTION_KEEP);
  // Of another job it is none.
  item.set_job_id("j-other");
  core.Do([&](Draft& draft) {
    EXPECT_EQ(OnHello(draft, hello, 77).status().code(),
              absl::StatusCode::kInvalidArgument);
  });
}

// Nobody knows whether its ranks have ended.
TEST(Membership, RemovedNodeThatReturnsWithADeletedJobsRanks_EndsThem) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  core.Disconnect("n1");
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "").ok()); });
  core.Do([&](Draft& d) { EXPECT_TRUE(RemoveNode(d, "n1").ok()); });
  core.Do([&](Draft& d) { DeleteJob(d, id); });
  const std::string next = core.Submit();
  const auto welcome = core.Join("n1", 1, "boot-1", {{id, 1}});
  ASSERT_TRUE(welcome.ok()) << welcome.status();
  EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_KILL);
  EXPECT_EQ(core.job(next).state(), qlora::v1::JOB_STATE_QUEUED);
}

// The command went with the node's record.
TEST(Membership, RemovedNodeThatReturnsWithoutItsPrepare_IsFree) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.Submit();
  core.Disconnect("n1");
  core.Do([&](Draft& d) { EXPECT_TRUE(CancelJob(d, id, "").ok()); });
  core.Do([&](Draft& d) { EXPECT_TRUE(RemoveNode(d, "n1").ok()); });
  ASSERT_TRUE(core.Join("n1").ok());
  EXPECT_EQ(core.job(core.Submit()).state(), qlora::v1::JOB_STATE_STARTING);
}

TEST(Membership, RemoveNode_OnlyWhenItIsGoneAndNothingRunsThere) {
  CoreHarness core;
  const auto remove = [&](const std::string& name) {
    absl::Status status;
    core.Do([&](Draft& d) { status = RemoveNode(d, name); });
    return status;
  };
  EXPECT_EQ(remove("n1").code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  const absl::Status connected = remove("n1");
  EXPECT_EQ(connected.code(), absl::StatusCode::kFailedPrecondition);
  core.Disconnect("n1");
  const absl::Status busy = remove("n1");
  EXPECT_EQ(busy.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(busy.message().find(id), absl::string_view::npos) << busy;
  core.Advance(absl::Seconds(31));
  core.Advance(absl::Seconds(600));
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_DOWN);
  EXPECT_TRUE(remove("n1").ok());
  core.Restart();
  EXPECT_TRUE(core.state().nodes.empty());
  EXPECT_TRUE(core.state().outbox.empty());
  // It registers anew, and what it still runs is ended.
  const auto welcome = core.Join("n1", 1, "boot-1", {{id, 1}});
  ASSERT_TRUE(welcome.ok()) << welcome.status();
  EXPECT_EQ(welcome->decisions(0).action(), Decision::ACTION_KILL);
  EXPECT_EQ(core.node("n1"), qlora::v1::NODE_STATE_READY);
}

}  // namespace
}  // namespace qlora::server
