// The coordinator over a real database, with the clock that the test sets.
#include "server/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>

#include "common/base/status_macros.h"
#include "core_harness.h"
#include "server/store/sqlite_store.h"
#include "server/tasks.h"

namespace qlora::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class KeepEffects : public EffectSink {
 public:
  void Perform(const Effect& effect) override {
    if (const auto* gone = std::get_if<NodeGone>(&effect)) {
      gone_.push_back(gone->node);
    } else if (const auto* line = std::get_if<AppendEvent>(&effect)) {
      events_.push_back(line->event.type());
    }
  }
  void OnSchedulerPass(absl::Duration) override {}
  const std::vector<std::string>& gone() const { return gone_; }
  const std::vector<std::string>& events() const { return events_; }

 private:
  std::vector<std::string> gone_;
  std::vector<std::string> events_;
};

// A database that cannot be written while `failing`.
class FailingStore : public Store {
 public:
  explicit FailingStore(Store* store) : store_(store) {}
  absl::StatusOr<State> Load() override { return store_->Load(); }
  absl::StatusOr<int64_t> RaiseTerm(int64_t seen) override {
    RETURN_IF_ERROR(Fails());
    return store_->RaiseTerm(seen);
  }
  absl::Status Commit(const Transaction& transaction) override {
    RETURN_IF_ERROR(Fails());
    return store_->Commit(transaction);
  }
  absl::StatusOr<std::optional<RequestResult>> FindRequest(
      const std::string& request_id) override {
    return store_->FindRequest(request_id);
  }
  absl::Status CheckWritable() override {
    RETURN_IF_ERROR(Fails());
    return store_->CheckWritable();
  }

  bool failing = false;

 private:
  absl::Status Fails() const {
    return failing ? absl::ResourceExhaustedError("the disk is full")
                   : absl::OkStatus();
  }
  Store* const store_;
};

class CoordinatorTest : public ::testing::Test {
 protected:
  CoordinatorTest() { Start(); }

  void Start() {
    coordinator_.reset();
    database_.reset();
    store_.reset();
    store_ = SqliteStore::Open(dir_.path() + "/db").value();
    database_ = std::make_unique<FailingStore>(store_.get());
    coordinator_ =
        Coordinator::Create(Timings{}, database_.get(), &effects_, &clock_)
            .value();
  }
  absl::Status Hello(const std::string& node, uint64_t stream) {
    qlora::v1::Hello hello;
    hello.set_node(node);
    hello.set_boot_id("boot-1");
    hello.set_cluster_id(coordinator_->cluster_id());
    auto& device = *hello.add_devices();
    device.set_name("cpu:0");
    device.set_kind("cpu");
    return coordinator_->Hello(hello, stream).status();
  }
  void Join(const std::string& node, uint64_t stream) {
    const absl::Status welcome = Hello(node, stream);
    ASSERT_TRUE(welcome.ok()) << welcome;
  }
  void Submit(const std::string& id, const std::string& job_file,
              absl::Duration deadline = absl::ZeroDuration()) {
    const auto done = coordinator_->Mutate(
        id, "digest", [&](Draft& draft) -> absl::StatusOr<std::string> {
          Job job;
          job.mutable_job().set_job_id(id);
          job.mutable_job().set_project("default");
          job.mutable_job().set_resolved_job_file(job_file);
          auto plan = std::make_shared<JobPlan>();
          plan->spec.deadline = deadline;
          job.plan = std::move(plan);
          QueueJob(draft, std::move(job));
          return std::string();
        });
    ASSERT_TRUE(done.ok()) << done.status();
  }
  // With a tick each second, so that none is taken for a standstill.
  void OutlastLease() {
    for (int i = 0; i < 31; ++i) {
      clock_.Advance(absl::Seconds(1));
      ASSERT_TRUE(coordinator_->Tick().ok());
    }
  }
  qlora::v1::NodeState NodeState(const std::string& name) {
    qlora::v1::NodeState state{};
    coordinator_->Read(
        [&](const State& s) { state = s.nodes.at(name).state(); });
    return state;
  }

  TempDir dir_;
  FakeClock clock_{absl::FromUnixSeconds(1'700'000'000)};
  KeepEffects effects_;
  std::unique_ptr<SqliteStore> store_;
  std::unique_ptr<FailingStore> database_;
  std::unique_ptr<Coordinator> coordinator_;
};

TEST_F(CoordinatorTest, ClockThatIsSet_EndsNoLease) {
  Join("n1", 1);
  for (const absl::Duration jump : {absl::Hours(24), -absl::Hours(48)}) {
    clock_.Jump(jump);
    clock_.Advance(absl::Milliseconds(200));
    ASSERT_TRUE(coordinator_->Tick().ok());
    EXPECT_EQ(NodeState("n1"), qlora::v1::NODE_STATE_READY);
  }
  // Nor makes one last longer.
  OutlastLease();
  EXPECT_EQ(NodeState("n1"), qlora::v1::NODE_STATE_UNREACHABLE);
}

TEST_F(CoordinatorTest, NodeThatIsRemoved_LeavesNoNumbersBehind) {
  Join("n1", 1);
  qlora::v1::WorkerEvent event;
  event.set_number(3);
  event.mutable_metrics();
  ASSERT_TRUE(coordinator_->AcceptEvent("n1", 1, event).ok());
  ASSERT_TRUE(coordinator_->AckCommands("n1", 1, 2).ok());
  const auto removed = coordinator_->Mutate(
      "r1", "digest", [](Draft& draft) -> absl::StatusOr<std::string> {
        OnDisconnect(draft, "n1", 1);
        RETURN_IF_ERROR(RemoveNode(draft, "n1"));
        return std::string();
      });
  ASSERT_TRUE(removed.ok()) << removed.status();
  ASSERT_TRUE(coordinator_->Tick().ok());
  coordinator_->Read([](const State& state) {
    EXPECT_TRUE(state.nodes.empty());
    EXPECT_TRUE(state.outbox.empty());
  });
}

// The database is a copy from before the newest starts of the coordinator.
TEST_F(CoordinatorTest, NodeThatHasSeenANewerTerm_RaisesOurs) {
  Join("n1", 1);
  qlora::v1::WorkerCommand command;
  command.mutable_cancel_task()->set_task_id("t");
  ASSERT_TRUE(coordinator_->SendCommand("n1", command).ok());
  const int64_t newer = coordinator_->term() + 40;
  qlora::v1::Hello hello;
  hello.set_node("n2");
  hello.set_boot_id("boot");
  hello.set_cluster_id(coordinator_->cluster_id());
  hello.set_term(newer);
  auto& held = *hello.add_inventory();
  held.set_job_id("j-of-the-lost-days");
  held.set_attempt(1);
  held.set_term(newer - 1);
  const auto welcome = coordinator_->Hello(hello, 2);
  ASSERT_TRUE(welcome.ok()) << welcome.status();
  const int64_t raised = coordinator_->term();
  EXPECT_GT(raised, newer);
  EXPECT_EQ(welcome->term(), raised);
  EXPECT_EQ(welcome->decisions(0).action(), qlora::v1::Decision::ACTION_HOLD);
  // Or the worker would refuse it.
  EXPECT_EQ(coordinator_->CommandsAfter("n1", 0, 1).at(0)->term(), raised);
  // What follows is written in the new term.
  Submit("j-1", JobFile());
  Start();
  EXPECT_GT(coordinator_->term(), raised);
}

TEST_F(CoordinatorTest, AnotherTookTheLead_SaysSoInsteadOfTryAgain) {
  const auto other = SqliteStore::Open(dir_.path() + "/db").value();
  ASSERT_TRUE(other->Load().ok());
  qlora::v1::Hello hello;
  hello.set_node("n1");
  hello.set_boot_id("boot");
  hello.set_cluster_id(coordinator_->cluster_id());
  EXPECT_EQ(coordinator_->Hello(hello, 1).status().code(),
            absl::StatusCode::kAborted);
  hello.set_term(coordinator_->term() + 1);
  const absl::Status status = coordinator_->Hello(hello, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("must stop"));
}

TEST_F(CoordinatorTest, TermsThatNobodyHas_RaiseNothing) {
  qlora::v1::Hello hello;
  hello.set_node("n1");
  hello.set_boot_id("boot");
  hello.set_cluster_id(coordinator_->cluster_id());
  const int64_t term = coordinator_->term();
  hello.set_term(std::numeric_limits<int64_t>::max());
  EXPECT_EQ(coordinator_->Hello(hello, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  hello.set_term(7);
  hello.set_last_command_seen(std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(coordinator_->Hello(hello, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  hello.clear_last_command_seen();
  auto& item = *hello.add_inventory();
  item.set_job_id("j-1");
  for (const int32_t attempt : {std::numeric_limits<int32_t>::max(), 0}) {
    item.set_attempt(attempt);
    EXPECT_EQ(coordinator_->Hello(hello, 1).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  hello.clear_inventory();
  hello.set_cluster_id("another");
  EXPECT_EQ(coordinator_->Hello(hello, 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(coordinator_->term(), term);
}

TEST_F(CoordinatorTest, ProcessThatStoodStill_EndsNoLease) {
  Join("n1", 1);
  clock_.Advance(absl::Minutes(30));
  ASSERT_TRUE(coordinator_->Tick().ok());
  EXPECT_EQ(NodeState("n1"), qlora::v1::NODE_STATE_READY);
}

// Nodes cannot return, nor report an end, while nothing can be stored.
TEST_F(CoordinatorTest, DatabaseThatCannotBeWritten_EndsNoWait) {
  Join("n1", 1);
  Submit("j-1", JobFile());
  database_->failing = true;
  coordinator_->Disconnect("n1", 1);
  // Its tasks are not waited for.
  EXPECT_THAT(effects_.gone(), ElementsAre("n1"));
  for (int i = 0; i < 180; ++i) {
    clock_.Advance(absl::Seconds(5));
    ASSERT_TRUE(coordinator_->Tick().ok()) << "has nothing to write";
    EXPECT_EQ(Hello("n1", 2).code(), absl::StatusCode::kUnavailable);
  }
  database_->failing = false;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(coordinator_->Tick().ok());
  EXPECT_EQ(NodeState("n1"), qlora::v1::NODE_STATE_READY);
  coordinator_->Read([](const State& state) {
    EXPECT_EQ(state.attempts.at({"j-1", 1}).state(), ATTEMPT_STATE_PREPARING);
  });
  // From now on it counts again.
  OutlastLease();
  EXPECT_EQ(NodeState("n1"), qlora::v1::NODE_STATE_UNREACHABLE);
}

TEST_F(CoordinatorTest, JobsDeadline_AwaitsWhatAnOutageHeldBack) {
  Join("n1", 1);
  Submit("j-1", JobFile("deadline: 1m\n"), absl::Minutes(1));
  qlora::v1::WorkerEvent event;
  event.set_job_id("j-1");
  event.set_attempt(1);
  event.set_term(coordinator_->term());
  event.set_number(1);
  event.mutable_prepared();
  ASSERT_TRUE(coordinator_->Event("n1", 1, event).ok());
  event.set_number(2);
  event.mutable_running();
  ASSERT_TRUE(coordinator_->Event("n1", 1, event).ok());
  const auto state = [&] {
    AttemptState result{};
    coordinator_->Read([&](const State& s) {
      result = s.attempts.at({"j-1", 1}).state();
    });
    return result;
  };
  const auto tick = [&](int times) {
    for (int i = 0; i < times; ++i) {
      clock_.Advance(absl::Seconds(1));
      (void)coordinator_->Tick();
    }
  };
  // No change of the state shows it: the deadline's is the first that fails.
  database_->failing = true;
  tick(90);
  database_->failing = false;
  tick(29);
  EXPECT_EQ(state(), ATTEMPT_STATE_RUNNING);
  // The coordinator's absence is such an outage.
  Start();
  tick(29);
  EXPECT_EQ(state(), ATTEMPT_STATE_RUNNING);
  tick(2);
  EXPECT_EQ(state(), ATTEMPT_STATE_DRAINING);
}

TEST_F(CoordinatorTest, HelloThatCannotBeStored_RenewsTheLease) {
  Join("n1", 1);
  coordinator_->Disconnect("n1", 1);
  for (int i = 0; i < 30; ++i) {
    clock_.Advance(absl::Seconds(5));
    ASSERT_TRUE(coordinator_->Tick().ok());
    database_->failing = true;
    EXPECT_EQ(Hello("n1", 2).code(), absl::StatusCode::kUnavailable);
    database_->failing = false;
    ASSERT_TRUE(coordinator_->Tick().ok());
  }
  EXPECT_EQ(NodeState("n1"), qlora::v1::NODE_STATE_READY);
}

TEST_F(CoordinatorTest, ClockThatIsSet_MovesWaitsAlong) {
  Join("n1", 1);
  Submit("j-1", JobFile());
  absl::Time before, after;
  const auto deadline = [](const State& state) {
    return FromProto(state.attempts.at({"j-1", 1}).deadline());
  };
  coordinator_->Read([&](const State& s) { before = deadline(s); });
  clock_.Jump(absl::Hours(24));
  ASSERT_TRUE(coordinator_->Tick().ok());
  coordinator_->Read([&](const State& s) { after = deadline(s); });
  EXPECT_EQ(after - before, absl::Hours(24));
}

TEST_F(CoordinatorTest, RecordsOfNoAttemptOfTheNode_AreCountedAndDropped) {
  Join("n1", 1);
  Submit("j-1", JobFile());
  Join("n2", 2);
  qlora::v1::WorkerEvent event;
  event.mutable_log()->set_text("x");
  event.set_attempt(1);
  event.set_term(coordinator_->term());
  uint64_t number = 0;
  const auto accept = [&](const std::string& node, uint64_t stream,
                          const std::string& job) {
    event.set_number(++number);
    event.set_job_id(job);
    return coordinator_->AcceptEvent(node, stream, event).value();
  };
  EXPECT_TRUE(accept("n1", 1, "j-1"));
  EXPECT_FALSE(accept("n1", 1, "../../../tmp/x"));
  EXPECT_FALSE(accept("n1", 1, ""));
  EXPECT_FALSE(accept("n2", 2, "j-1"));
  event.set_attempt(2);
  EXPECT_FALSE(accept("n1", 1, "j-1"));
  event.set_attempt(1);
  event.set_term(coordinator_->term() + 1);
  EXPECT_FALSE(accept("n1", 1, "j-1"));
  // Their numbers are taken all the same.
  ASSERT_TRUE(coordinator_->Tick().ok());
  coordinator_->Read([&](const State& state) {
    EXPECT_EQ(state.nodes.at("n1").record.last_event(), number);
  });
}

TEST_F(CoordinatorTest, CommandLargerThanAMessage_IsRefused) {
  Join("n1", 1);
  qlora::v1::WorkerCommand command;
  command.mutable_run_task()->mutable_task()->set_job_file(
      std::string(kMaxMessageBytes, 'x'));
  const absl::Status status = coordinator_->SendCommand("n1", command);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("name fewer files"));
  EXPECT_TRUE(coordinator_->CommandsAfter("n1", 0, 10).empty());
}

TEST_F(CoordinatorTest, TaskForANodeThatHasGone_IsRefused) {
  Join("n1", 1);
  coordinator_->Disconnect("n1", 1);
  qlora::v1::WorkerCommand task;
  task.mutable_run_task()->set_task_id("t-1");
  EXPECT_EQ(coordinator_->SendCommand("n1", task).code(),
            absl::StatusCode::kUnavailable);
  // Its end may still be told.
  qlora::v1::WorkerCommand cancel;
  cancel.mutable_cancel_task()->set_task_id("t-1");
  EXPECT_TRUE(coordinator_->SendCommand("n1", cancel).ok());
}

TEST_F(CoordinatorTest, UnreadableJob_IsHeldAndTheOthersGoOn) {
  Submit("j-1", JobFile("a_key_of_another_version: 1\n"));
  Submit("j-2", JobFile());
  Start();
  Join("n1", 1);
  coordinator_->Read([](const State& state) {
    const qlora::v1::Job& held = state.jobs.at("j-1").job();
    EXPECT_EQ(held.state(), qlora::v1::JOB_STATE_HELD);
    EXPECT_THAT(held.reason(), HasSubstr("a_key_of_another_version"));
    EXPECT_EQ(state.jobs.at("j-2").job().state(),
              qlora::v1::JOB_STATE_STARTING);
  });
  EXPECT_THAT(effects_.events(),
              UnorderedElementsAre("Queued", "Queued", "Held", "Placed"));
  // It stays so, and can be cancelled.
  Start();
  EXPECT_TRUE(coordinator_
                  ->Mutate("cancel", "digest",
                           [](Draft& draft) -> absl::StatusOr<std::string> {
                             const absl::Status done =
                                 CancelJob(draft, "j-1", "");
                             if (!done.ok()) return done;
                             return std::string();
                           })
                  .ok());
}

TEST_F(CoordinatorTest, TaskThatEnds_WaitsForItsLastEvent) {
  Join("n1", 1);
  Tasks tasks(coordinator_.get());
  std::atomic<bool> inside = false, go = false, ended = false;
  const auto id = tasks.Start(
      {}, {.on_event =
               [&](const qlora::v1::TrainerEvent&) {
                 inside = true;
                 while (!go) std::this_thread::yield();
                 EXPECT_FALSE(ended) << "what on_event fills is gone";
               },
           .on_done = [&](const absl::Status&) { ended = true; }});
  ASSERT_TRUE(id.ok()) << id.status();
  qlora::v1::TaskOutput output;
  output.set_task_id(*id);
  output.mutable_event()->mutable_generated();
  std::thread reporter([&] { tasks.OnOutput(output); });
  while (!inside) std::this_thread::yield();
  std::thread caller([&] { tasks.Cancel(*id); });
  // Until the worker is told, at the earliest.
  for (int i = 0; i < 1000 && !ended; ++i) std::this_thread::yield();
  EXPECT_FALSE(ended);
  go = true;
  reporter.join();
  caller.join();
  EXPECT_TRUE(ended);
  // None comes after the end.
  inside = false;
  tasks.OnOutput(output);
  EXPECT_FALSE(inside);
}

}  // namespace
}  // namespace qlora::server
