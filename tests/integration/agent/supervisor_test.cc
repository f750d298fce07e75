#include <signal.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/agent/supervisor_fixture.h"

namespace qlora::agent {
namespace {

using ::testing::HasSubstr;

TEST_F(SupervisorTest, Gang_RunsToItsEnd_EventsInOrder) {
  Run("steps=4\nsave_every=2\nprint=hello", 2);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_TRUE(ended.complete()) << ended.DebugString();
  EXPECT_EQ(ended.ranks_size(), 2);
  int metrics = 0;
  int staged = 0;
  bool printed = false;
  for (const v1::WorkerEvent& event : Events()) {
    EXPECT_EQ(event.job_id(), "j-test");
    EXPECT_EQ(event.attempt(), 1);
    EXPECT_EQ(event.term(), 1);
    if (event.has_metrics()) {
      EXPECT_EQ(event.metrics().step(), ++metrics);
      EXPECT_EQ(event.metrics().attempt(), 1);
    }
    if (event.has_log()) printed |= event.log().text() == "hello";
    staged += event.has_staged();
  }
  EXPECT_EQ(metrics, 4);
  WaitFor([](const auto& e) { return e.has_running(); });
  EXPECT_TRUE(printed);
  // At least the last one, of both ranks; rank 0's files are in the store.
  EXPECT_GE(staged, 3);
  const v1::WorkerEvent last = WaitFor([](const auto& e) {
    return e.has_staged() && e.staged().final() && e.staged().rank() == 0;
  });
  ASSERT_EQ(last.staged().files_size(), 2);
  EXPECT_EQ(last.staged().files(1).path(), "sub/state.bin");
  EXPECT_EQ(store_->Get(last.staged().files(1).sha256()), "state 4");
  ASSERT_EQ(last.staged().output_size(), 1);
  EXPECT_TRUE(store_->Has(last.staged().output(0).sha256()));
  EXPECT_TRUE(Events().back().has_ended());
}

TEST_F(SupervisorTest, SingleRank_DoesNotBeginBeforeStart) {
  supervisor_->Handle(Prepare("steps=1", 1));
  WaitFor([](const auto& e) { return e.has_prepared(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(Events().size(), 1u);
  Start("");
  EXPECT_TRUE(WaitForEnd().complete());
}

TEST_F(SupervisorTest, RankKilled_OthersGoWithinTwoSeconds_CauseIsNamed) {
  Run("steps=100000\nstep_ms=5\nfail_rank=1\nfail_step=3\nsignal=9", 3);
  const absl::Time begin = absl::Now();
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(3));
  EXPECT_FALSE(ended.complete());
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_INFRA);
  EXPECT_THAT(ended.message(), HasSubstr("rank 1 was killed by signal 9"));
  EXPECT_EQ(ended.ranks_size(), 3);
}

TEST_F(SupervisorTest, RankCrashes_IsInternal) {
  Run("fail_rank=0\nsignal=11", 1);
  EXPECT_EQ(WaitForEnd().failure_class(), v1::FAILURE_CLASS_INTERNAL);
}

TEST_F(SupervisorTest, RankFails_ItsMessageIsTheReason) {
  Run("fail_rank=0\nexit=10\nclass=1", 2);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_USER);
  EXPECT_EQ(ended.message(), "the script says so");
}

TEST_F(SupervisorTest, Garbage_IsInternalAndTheRankIsKilled) {
  Run("garbage=1", 1);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_INTERNAL);
  EXPECT_THAT(ended.message(), HasSubstr("a frame claims 4294967295 bytes"));
  EXPECT_EQ(ended.ranks(0).signal(), SIGKILL);
  // Nothing that came after it counts.
  for (const auto& event : Events()) EXPECT_FALSE(event.has_staged());
}

// The agent stays in command, and what it has to keep is bounded.
TEST_F(SupervisorTest, RankThatPrintsWithoutEnd_IsStoppedAndMostIsLeftOut) {
  Run("flood=1", 1);
  WaitFor([](const auto& e) {
    return e.has_log() &&
           e.log().text().find("are left out") != std::string::npos;
  });
  const absl::Time begin = absl::Now();
  Stop(/*save=*/false, 0);
  EXPECT_FALSE(WaitForEnd().complete());
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
}

// Why it ended is said in the last ones.
TEST_F(SupervisorTest, LinesLeftOutAtTheEnd_AreCountedAndTheLastAreTold) {
  Run("burst=5000\nfail_rank=0", 1);
  WaitForEnd();
  int lines = 0;
  std::string last;
  for (const auto& event : Events()) {
    if (!event.has_log()) continue;
    last = event.log().text();
    lines += last.find("are left out") == last.npos ? 1 : std::stoi(last);
  }
  EXPECT_EQ(lines, 5000);
  EXPECT_EQ(last, "line 5000");
}

TEST_F(SupervisorTest, EndlessMessage_IsAbridged) {
  Run("fail_rank=0\nmessage_bytes=4000000", 1);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_LT(ended.ByteSizeLong(), 64u << 10);
  EXPECT_THAT(ended.message(), HasSubstr("xxx ... xxx"));
}

// What is staged is removed after its upload.
TEST_F(SupervisorTest, StagedElsewhere_IsInternalAndStaysThere) {
  fs::create_directories(directory_ + "/precious");
  std::ofstream(directory_ + "/precious/file") << "precious";
  for (const char* place : {"/precious", "/attempts/j-test-1/work/staged/.."}) {
    {
      MutexLock lock(&mu_);
      events_.clear();
    }
    Run("steps=2\nsave_every=1\nstage_at=" + directory_ + place, 1);
    const v1::AttemptEnded ended = WaitForEnd();
    EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_INTERNAL);
    EXPECT_THAT(ended.message(), HasSubstr("does not lie below"));
    WaitUntilGone(directory_ + "/attempts/j-test-1");
  }
  EXPECT_TRUE(fs::exists(directory_ + "/precious/file"));
}

TEST_F(SupervisorTest, StopWithSave_StagesAndReportsStopped) {
  Run("steps=100000\nstep_ms=5", 2);
  WaitForStep();
  Stop(/*save=*/true, 20);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_TRUE(ended.stopped()) << ended.DebugString();
  EXPECT_FALSE(ended.complete());
  WaitFor(
      [](const auto& e) { return e.has_staged() && e.staged().rank() == 0; });
}

TEST_F(SupervisorTest, StopIgnored_KilledAfterGrace) {
  Run("steps=100000\nstep_ms=5\nignore_stop=1", 1);
  WaitForStep();
  Stop(/*save=*/true, 1);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_FALSE(ended.stopped());
  EXPECT_EQ(ended.ranks(0).signal(), SIGKILL);
}

TEST_F(SupervisorTest, StopAtOnce_KillsRanks) {
  Run("hang=1", 2);
  WaitForStep();
  Stop(/*save=*/false, 0);
  EXPECT_FALSE(WaitForEnd().complete());
}

// What a rank staged before it was killed is read after the Stop.
TEST_F(SupervisorTest, StageFrameAfterStopAtOnce_TheAttemptStillEnds) {
  Run("steps=100000\nstep_ms=20\nsave_every=1", 1);
  WaitForStep();
  const auto newest = [this] {
    int step = 0;
    const fs::path staged = directory_ + "/attempts/j-test-1/work/staged";
    std::error_code absent_yet;
    for (const auto& entry : fs::directory_iterator(staged, absent_yet)) {
      step = std::max(step, std::atoi(entry.path().filename().c_str()));
    }
    return step;
  };
  std::promise<void> begun, posted;
  node_->loop.Post([&] {
    begun.set_value();
    posted.get_future().wait();
  });
  begun.get_future().wait();
  // Run one after the other, without a look at the sockets in between.
  node_->loop.Post([&] {
    const int step = newest();
    while (newest() < step + 2) std::this_thread::yield();
  });
  Stop(/*save=*/false, 0);
  posted.set_value();
  EXPECT_FALSE(WaitForEnd().complete());
}

TEST_F(SupervisorTest, StopOfWhatIsNotHere_IsAnsweredAtOnce) {
  Stop(/*save=*/false, 0);
  const auto ended = WaitFor([](const auto& e) { return e.has_ended(); });
  EXPECT_EQ(ended.job_id(), "j-test");
  EXPECT_EQ(ended.attempt(), 1);
  EXPECT_FALSE(ended.ended().complete());
}

TEST_F(SupervisorTest, CancelledWhileAnotherFetchesTheSame_LoopGoesOn) {
  const auto prepare = [&](const std::string& job) {
    v1::WorkerCommand command = Prepare("steps=1", 1);
    command.mutable_prepare()->set_job_id(job);
    v1::UploadedInput& input = *command.mutable_prepare()->add_inputs();
    input.set_path("train.jsonl");
    input.add_files()->set_path("train.jsonl");
    input.mutable_files(0)->set_sha256(store_->Put("{}\n"));
    supervisor_->Handle(command);
  };
  store_->PauseDownloads(true);
  prepare("j-other");
  while (store_->downloads() == 0) std::this_thread::yield();
  prepare("j-test");
  const std::string waiting = directory_ + "/attempts/j-test-1";
  while (!fs::exists(waiting + "/inputs")) std::this_thread::yield();
  Stop(/*save=*/false, 0);
  WaitFor([](const auto& e) { return e.has_ended(); });
  // The loop sweeps it while the other's download still waits.
  const absl::Time deadline = absl::Now() + absl::Seconds(5);
  while (fs::exists(waiting) && absl::Now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_FALSE(fs::exists(waiting));
  store_->PauseDownloads(false);
  WaitFor([](const auto& e) { return e.has_prepared(); });
}

TEST_F(SupervisorTest, Hang_TimesOut) {
  RankTimeouts timeouts;
  timeouts.step = absl::Seconds(1);
  MakeSupervisor(timeouts);
  Run("hang=3", 2);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_INFRA);
  EXPECT_THAT(ended.message(), HasSubstr("step 3 has not gone on for "));
  EXPECT_THAT(ended.message(), HasSubstr("a rank hangs"));
  EXPECT_EQ(ended.ranks_size(), 2);
}

TEST_F(SupervisorTest, HangInTheFirstStep_TimesOutLater) {
  RankTimeouts timeouts;
  timeouts.first_step = absl::Seconds(3);
  timeouts.step = absl::Seconds(1);
  MakeSupervisor(timeouts);
  const absl::Time begin = absl::Now();
  Run("hang=1", 1);
  EXPECT_THAT(WaitForEnd().message(), HasSubstr("step 1 has not gone on"));
  EXPECT_GT(absl::Now() - begin, absl::Seconds(3));
}

TEST_F(SupervisorTest, LongSave_IsNoHang) {
  RankTimeouts timeouts;
  timeouts.step = absl::Seconds(1);
  MakeSupervisor(timeouts);
  Run("steps=2\nsave_ms=4000", 1);
  EXPECT_TRUE(WaitForEnd().complete());
}

TEST_F(SupervisorTest, StoppedRank_IsNamedAndEndsTheAttempt) {
  RankTimeouts timeouts;
  timeouts.step = absl::Seconds(1);
  MakeSupervisor(timeouts);
  Run("steps=100000\nstep_ms=5\nstop_rank=1", 2);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_INFRA);
  EXPECT_THAT(ended.message(), HasSubstr("rank 1 is stopped (SIGSTOP)"));
}

TEST_F(SupervisorTest, PrintedLine_HasItsTimeAndLevel) {
  const absl::Time begin = absl::Now();
  Run("print=ERROR: this is only a test", 1);
  const v1::LogLine log =
      WaitFor([](const auto& e) { return e.has_log(); }).log();
  EXPECT_EQ(log.level(), "error");
  EXPECT_EQ(log.text(), "ERROR: this is only a test");
  EXPECT_GE(log.time().seconds(), absl::ToUnixSeconds(begin));
  EXPECT_TRUE(WaitForEnd().complete());
}

TEST_F(SupervisorTest, Warning_IsAnEventToo) {
  Run("warn=the model has collapsed", 1);
  const v1::Notice notice =
      WaitFor([](const auto& e) { return e.has_notice(); }).notice();
  EXPECT_EQ(notice.type(), "Warning");
  EXPECT_EQ(notice.message(), "the model has collapsed");
  EXPECT_EQ(WaitFor([](const auto& e) { return e.has_log(); }).log().level(),
            "warning");
}

TEST_F(SupervisorTest, PreparedAndNeverStarted_EndsInTime) {
  RankTimeouts timeouts;
  timeouts.start = absl::Milliseconds(200);
  MakeSupervisor(timeouts);
  supervisor_->Handle(Prepare("steps=1", 2));
  WaitFor([](const auto& e) { return e.has_prepared(); });
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_INFRA);
  EXPECT_EQ(ended.message(), "not started within 200ms after it was prepared");
}

TEST_F(SupervisorTest, ModelOutsideTheRoots_IsTheUsersError) {
  v1::WorkerCommand command = Prepare("", 1);
  command.mutable_prepare()->mutable_model()->set_directory("/etc");
  supervisor_->Handle(command);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_USER);
  EXPECT_THAT(ended.message(), HasSubstr("--model-root"));
}

TEST_F(SupervisorTest, InputNotInStore_IsTheUsersError) {
  v1::WorkerCommand command = Prepare("", 1);
  v1::UploadedInput& input = *command.mutable_prepare()->add_inputs();
  input.set_path("train.jsonl");
  input.add_files()->set_path("train.jsonl");
  input.mutable_files(0)->set_sha256(Sha256Hex("missing"));
  supervisor_->Handle(command);
  EXPECT_EQ(WaitForEnd().failure_class(), v1::FAILURE_CLASS_USER);
}

TEST_F(SupervisorTest, CheckpointNotInStore_IsSaidAndNotTheUsersError) {
  v1::WorkerCommand command = Prepare("", 1);
  v1::ArtifactFile& file = *command.mutable_prepare()->add_resume_files();
  file.set_path("manifest.json");
  file.set_sha256(Sha256Hex("missing"));
  file.set_size_bytes(7);
  supervisor_->Handle(command);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_INFRA);
  EXPECT_TRUE(ended.checkpoint_unusable());
  EXPECT_THAT(ended.message(), HasSubstr("not whole in the artifact store"));
}

TEST_F(SupervisorTest, StoreAway_TrainingGoesOn_NewestIsUploadedLater) {
  v1::WorkerCommand command = Prepare("steps=6\nsave_every=1\nstep_ms=30", 1);
  supervisor_->Handle(command);
  WaitFor([](const auto& e) { return e.has_prepared(); });
  store_->Stop();
  Start("");
  WaitFor(
      [](const auto& e) { return e.has_metrics() && e.metrics().step() == 6; });
  for (const auto& event : Events()) {
    EXPECT_FALSE(event.has_staged() || event.has_ended());
  }
  store_->Restart();
  EXPECT_TRUE(WaitForEnd().complete());
  const auto final = WaitFor(
      [](const auto& e) { return e.has_staged() && e.staged().final(); });
  EXPECT_EQ(final.staged().step(), 6);
  EXPECT_TRUE(store_->Has(final.staged().files(0).sha256()));
  std::vector<std::string> told;
  for (const auto& event : Events()) {
    if (event.notice().type() == "CheckpointSkipped") {
      told.push_back(event.notice().message());
    }
  }
  ASSERT_EQ(told.size(), 2u);
  EXPECT_THAT(told[0], HasSubstr("step 2 was not stored: step 3 was saved"));
  EXPECT_THAT(told[1], HasSubstr("4 checkpoints were not stored"));
}

TEST_F(SupervisorTest, FileCollectedDuringALongUpload_IsUploadedAgain) {
  fs::create_directories(directory_ + "/stage");
  for (const char* name : {"a", "b", "c"}) {
    std::ofstream(directory_ + "/stage/" + name) << "content of " << name;
  }
  store_->CollectAtUpload(3);
  Cancellation cancellation;
  const auto files = fetcher_->Store(directory_ + "/stage", cancellation);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->size(), 3);
  for (const v1::ArtifactFile& file : *files) {
    EXPECT_TRUE(store_->Has(file.sha256())) << file.path();
  }
}

TEST_F(SupervisorTest, Drain_SavesAndRefusesNewWork) {
  Run("steps=100000\nstep_ms=5", 1);
  WaitForStep();
  const auto drained = std::make_shared<std::promise<void>>();
  supervisor_->Drain(absl::Seconds(20), [drained] { drained->set_value(); });
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_TRUE(ended.stopped());
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_DRAINED);
  drained->get_future().wait();
  v1::WorkerCommand again = Prepare("", 1);
  again.mutable_prepare()->set_attempt(2);
  supervisor_->Handle(again);
  WaitFor([](const auto& e) { return e.has_ended() && e.attempt() == 2; });
}

// SIGTERM while the coordinator is away: nothing that was staged is lost.
TEST_F(SupervisorTest, DrainWithoutStore_NextRunHandsInWhatIsKept) {
  LeaveACheckpoint();
  EXPECT_EQ(supervisor_->Inventory().size(), 1u);
  EXPECT_EQ(supervisor_->Inventory()[0].ranks_size(), 0);
  store_->Restart();
  Decide(v1::Decision::ACTION_KEEP);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_TRUE(ended.stopped()) << ended.DebugString();
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_DRAINED);
  EXPECT_EQ(ended.ranks_size(), 1);
  const v1::WorkerEvent staged =
      WaitFor([](const auto& e) { return e.has_staged(); });
  EXPECT_EQ(staged.term(), 1);
  EXPECT_EQ(store_->Get(staged.staged().files(1).sha256()),
            absl::StrCat("state ", staged.staged().step()));
  EXPECT_TRUE(Events().back().has_ended());
  WaitUntilGone(directory_ + "/attempts/j-test-1");
}

TEST_F(SupervisorTest, LeftAttemptThatIsOver_IsDroppedWithAWord) {
  LeaveACheckpoint();
  store_->Restart();
  Decide(v1::Decision::ACTION_KILL);
  const v1::Notice notice =
      WaitFor([](const auto& e) { return e.has_notice(); }).notice();
  EXPECT_EQ(notice.type(), "CheckpointLost");
  EXPECT_THAT(notice.message(), HasSubstr("was over before its worker"));
  WaitForEnd();
  WaitUntilGone(directory_ + "/attempts/j-test-1");
  for (const auto& event : Events()) EXPECT_FALSE(event.has_staged());
}

TEST_F(SupervisorTest, LeftAttempt_WaitsThroughRunsWithoutACoordinator) {
  LeaveACheckpoint();
  NextRun();
  EXPECT_EQ(supervisor_->Inventory().size(), 1u);
  store_->Restart();
  Decide(v1::Decision::ACTION_KEEP);
  EXPECT_TRUE(WaitForEnd().stopped());
}

TEST_F(SupervisorTest, DamagedRecord_IsRemovedAndTheRestGoesOn) {
  LeaveACheckpoint();
  std::ofstream(directory_ + "/attempts/j-test-1/record") << "no record";
  fs::create_directories(directory_ + "/attempts/j-other-1/work");
  NextRun();
  EXPECT_TRUE(supervisor_->Inventory().empty());
  EXPECT_TRUE(fs::is_empty(directory_ + "/attempts"));
}

TEST_F(SupervisorTest, KilledAgent_NextRunReportsTheEnd) {
  Run("hang=2\nsave_every=1", 1);
  WaitFor([](const auto& e) { return e.has_staged(); });
  NextRun();
  Decide(v1::Decision::ACTION_KEEP);
  const v1::AttemptEnded ended = WaitForEnd();
  EXPECT_EQ(ended.failure_class(), v1::FAILURE_CLASS_INFRA);
  EXPECT_THAT(ended.message(), HasSubstr("they ended with it"));
}

TEST_F(SupervisorTest, NewerAttempt_SupersedesTheOlder) {
  Run("hang=1", 1);
  WaitForStep();
  v1::WorkerCommand newer = Prepare("steps=1", 1);
  newer.mutable_prepare()->set_attempt(2);
  supervisor_->Handle(newer);
  const auto ended =
      WaitFor([](const auto& e) { return e.has_ended() && e.attempt() == 1; });
  EXPECT_THAT(ended.ended().message(), HasSubstr("superseded"));
  WaitFor([](const auto& e) { return e.has_prepared() && e.attempt() == 2; });
}

TEST_F(SupervisorTest, DecisionKill_EndsTheRanks) {
  Run("hang=1", 1);
  WaitForStep();
  ASSERT_EQ(supervisor_->Inventory().size(), 1u);
  EXPECT_EQ(supervisor_->Inventory()[0].last_step(), 1);
  Decide(v1::Decision::ACTION_KILL);
  EXPECT_FALSE(WaitForEnd().complete());
}

TEST_F(SupervisorTest, Inputs_ComeAsLinksAndAttemptLeavesNothing) {
  v1::WorkerCommand command = Prepare("steps=1", 1);
  v1::UploadedInput& input = *command.mutable_prepare()->add_inputs();
  input.set_path("data/train.jsonl");
  input.add_files()->set_path("train.jsonl");
  input.mutable_files(0)->set_sha256(store_->Put("{}\n"));
  command.mutable_prepare()->mutable_job_create_time()->set_seconds(1234567);
  Run(command);
  EXPECT_TRUE(WaitForEnd().complete());
  const auto final = WaitFor(
      [](const auto& e) { return e.has_staged() && e.staged().final(); });
  const std::string task = store_->Get(final.staged().output(0).sha256());
  EXPECT_THAT(task, HasSubstr("/inputs/0/train.jsonl\"\n"));
  EXPECT_THAT(task, HasSubstr("job_create_time {\n  seconds: 1234567\n}"));
  // The next attempt gets the same directory.
  EXPECT_THAT(task, HasSubstr("token_cache_directory: \"" + directory_ +
                              "/cache/tokens\"\n"));
  WaitUntilGone(directory_ + "/attempts/j-test-1");
}

TEST_F(SupervisorTest, EvalTask_HasTheMemoryOfTheNodeAndTheJobsTokens) {
  for (const auto& [mode, memory] :
       {std::pair(v1::TRAINER_MODE_PLAN, "memory_bytes: 1000\n"),
        std::pair(v1::TRAINER_MODE_EVAL, "memory_bytes: 2000\n")}) {
    const bool eval = mode == v1::TRAINER_MODE_EVAL;
    v1::WorkerCommand command;
    v1::RunTask& run = *command.mutable_run_task();
    run.set_task_id(v1::TrainerMode_Name(mode));
    run.mutable_task()->set_mode(mode);
    if (eval) run.mutable_task()->mutable_job_create_time()->set_seconds(1);
    run.mutable_model()->set_directory(directory_ + "/root/model");
    supervisor_->Handle(command);
    const auto said = WaitFor([&](const v1::WorkerEvent& e) {
      return e.task_output().task_id() == run.task_id() &&
             e.task_output().has_event();
    });
    const std::string task = said.task_output().event().generated().text();
    EXPECT_THAT(task, HasSubstr(memory));
    EXPECT_EQ(task.find("/cache/tokens") != task.npos, eval);
  }
}

}  // namespace
}  // namespace qlora::agent
