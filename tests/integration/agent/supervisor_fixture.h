// A supervisor with ranks that are scripts (fake_rank.cc), for tests.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <thread>

#include "gtest/gtest.h"
#include "tests/integration/agent/artifact_store_fake.h"
#include "worker/agent/coordinator_link.h"
#include "worker/agent/supervisor.h"

namespace qlora::agent {
namespace fs = std::filesystem;

inline constexpr absl::Duration kPatience = absl::Seconds(20);

// One loop, launcher and store for all tests: the launcher must be forked
// before gRPC has threads.
struct Node {
  Node()
      : launcher(*Launcher::Start()),
        processes(loop, std::move(launcher), [] {}),
        thread([this] { loop.Run(); }) {}
  ~Node() {
    loop.Stop();
    thread.join();
  }
  Launcher launcher;
  EventLoop loop;
  Processes processes;
  std::thread thread;
};

class SupervisorTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { node_ = new Node(); }
  static void TearDownTestSuite() {
    delete node_;
    node_ = nullptr;
  }

  void SetUp() override {
    char path[] = "/tmp/qlora-agent-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    directory_ = path;
    store_ = std::make_unique<ArtifactStoreFake>();
    client_ = std::make_unique<ArtifactClient>(
        ConnectToCoordinator(store_->address()));
    cache_ = *ContentCache::Open(directory_ + "/cache", 1 << 30);
    fs::create_directories(directory_ + "/root/model");
    std::ofstream(directory_ + "/root/model/config.json") << "{}";
    fetcher_ = std::make_unique<InputFetcher>(
        *cache_, *client_, std::vector<std::string>{directory_ + "/root"});
    metrics_ = std::make_unique<AgentMetrics>(Clock::Real());
    MakeSupervisor({});
  }

  void MakeSupervisor(RankTimeouts timeouts) {
    v1::Device device;
    device.set_name("cpu:0");
    device.set_kind("cpu");
    device.set_memory_bytes(1000);
    device.add_cores(0);
    v1::Device second = device;
    second.set_name("cpu:1");
    OnLoop([&] {
      supervisor_ = std::make_unique<Supervisor>(Environment{
          .loop = node_->loop,
          .processes = node_->processes,
          .fetcher = *fetcher_,
          .metrics = *metrics_,
          .emit = [this](v1::WorkerEvent event) { Keep(std::move(event)); },
          .trainer = std::string(QLORA_BINARY_DIR) + "/bin/fake_rank",
          .directory = directory_,
          .token_cache = cache_->token_directory(),
          .data_plane_host = "127.0.0.1",
          .devices = {device, second},
          .timeouts = timeouts});
    });
  }

  void TearDown() override {
    // A supervisor outlives its loop's work; here the loop outlives it.
    const auto drained = std::make_shared<std::promise<void>>();
    supervisor_->Drain(absl::ZeroDuration(),
                       [drained] { drained->set_value(); });
    drained->get_future().wait();
    OnLoop([&] { supervisor_.reset(); });
    fs::remove_all(directory_);
  }

  static void OnLoop(const std::function<void()>& work) {
    // Shared: set_value may still be busy when the wait is over.
    const auto done = std::make_shared<std::promise<void>>();
    node_->loop.Post([&work, done] {
      work();
      done->set_value();
    });
    done->get_future().wait();
  }

  void Keep(v1::WorkerEvent event) {
    MutexLock lock(&mu_);
    events_.push_back(std::move(event));
    changed_.SignalAll();
  }

  // Waits for the first event for which `wanted` holds.
  v1::WorkerEvent WaitFor(
      const std::function<bool(const v1::WorkerEvent&)>& wanted) {
    const absl::Time deadline = absl::Now() + kPatience;
    MutexLock lock(&mu_);
    while (absl::Now() < deadline) {
      for (const auto& event : events_) {
        if (wanted(event)) return event;
      }
      changed_.WaitWithTimeout(&mu_, deadline - absl::Now());
    }
    ADD_FAILURE() << "no such event in time";
    return {};
  }
  v1::AttemptEnded WaitForEnd() {
    return WaitFor([](const auto& e) { return e.has_ended(); }).ended();
  }
  std::vector<v1::WorkerEvent> Events() {
    MutexLock lock(&mu_);
    return events_;
  }

  v1::WorkerCommand Prepare(const std::string& script, int ranks) {
    v1::WorkerCommand command;
    // Sent again in a later term; the attempt keeps that of its beginning.
    command.set_term(2);
    v1::PrepareAttempt& prepare = *command.mutable_prepare();
    prepare.set_term(1);
    prepare.set_job_id("j-test");
    prepare.set_attempt(1);
    prepare.set_resolved_job_file(script);
    prepare.mutable_model()->set_directory(directory_ + "/root/model");
    prepare.set_world_size(ranks);
    prepare.set_rendezvous(true);
    for (int rank = 0; rank < ranks; ++rank) {
      v1::RankAssignment& assignment = *prepare.add_ranks();
      assignment.set_rank(rank);
      assignment.set_device("cpu:0");
    }
    return command;
  }
  void Start(const std::string& address) {
    v1::WorkerCommand command;
    command.mutable_start()->set_job_id("j-test");
    command.mutable_start()->set_attempt(1);
    command.mutable_start()->set_rendezvous_address(address);
    supervisor_->Handle(command);
  }
  void Stop(bool save, int grace_seconds) {
    v1::WorkerCommand command;
    command.mutable_stop()->set_job_id("j-test");
    command.mutable_stop()->set_attempt(1);
    command.mutable_stop()->set_save(save);
    command.mutable_stop()->mutable_grace()->set_seconds(grace_seconds);
    supervisor_->Handle(command);
  }
  // Prepares and starts.
  void Run(const std::string& script, int ranks) {
    Run(Prepare(script, ranks));
  }
  void Run(const v1::WorkerCommand& prepare) {
    supervisor_->Handle(prepare);
    const v1::WorkerEvent prepared = WaitFor(
        [](const auto& e) { return e.has_prepared() || e.has_ended(); });
    ASSERT_TRUE(prepared.has_prepared()) << prepared.DebugString();
    Start(prepared.prepared().rendezvous_address());
  }
  void WaitForStep() {
    WaitFor([](const auto& e) { return e.has_metrics(); });
  }

  // The agent ends, whatever it does, and starts again.
  void NextRun(const RankTimeouts& timeouts = {}) {
    OnLoop([this] { supervisor_.reset(); });
    {
      MutexLock lock(&mu_);
      events_.clear();
    }
    MakeSupervisor(timeouts);
  }
  // The last run was told to end while the store was away.
  void LeaveACheckpoint(const RankTimeouts& timeouts = {}) {
    Run("steps=100000\nstep_ms=5", 1);
    WaitForStep();
    store_->Stop();
    const auto drained = std::make_shared<std::promise<void>>();
    supervisor_->Drain(absl::Seconds(20), [drained] { drained->set_value(); });
    ASSERT_EQ(drained->get_future().wait_for(std::chrono::seconds(10)),
              std::future_status::ready);
    NextRun(timeouts);
  }
  void Decide(v1::Decision::Action action) {
    google::protobuf::RepeatedPtrField<v1::Decision> decisions;
    v1::Decision& decision = *decisions.Add();
    decision.set_job_id("j-test");
    decision.set_attempt(1);
    decision.set_action(action);
    supervisor_->Decide(decisions);
  }
  void WaitUntilRanksLeave() {
    const absl::Time deadline = absl::Now() + kPatience;
    while (supervisor_->Inventory().at(0).ranks_size() > 0 &&
           absl::Now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  static void WaitUntilGone(const std::string& path) {
    const absl::Time deadline = absl::Now() + kPatience;
    while (fs::exists(path) && absl::Now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_FALSE(fs::exists(path));
  }

  static inline Node* node_ = nullptr;
  std::string directory_;
  std::unique_ptr<ArtifactStoreFake> store_;
  std::unique_ptr<ArtifactClient> client_;
  std::unique_ptr<ContentCache> cache_;
  std::unique_ptr<InputFetcher> fetcher_;
  std::unique_ptr<AgentMetrics> metrics_;
  std::unique_ptr<Supervisor> supervisor_;
  Mutex mu_;
  CondVar changed_;
  std::vector<v1::WorkerEvent> events_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::agent
