// The coordinator's core as production drives it, without threads or network:
// every event is a Draft that is stored in a real database before it is
// applied, and the clock is what the test says.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/base/files.h"
#include "server/core/job.h"
#include "server/core/job_plan.h"
#include "server/core/membership.h"
#include "server/core/scheduler.h"
#include "server/store/sqlite_store.h"

namespace qlora::server {

// A directory that goes with the test; in memory where there is one, for speed.
// That of a process that was killed goes with the next test's start.
class TempDir {
 public:
  TempDir() {
    const std::string parent =
        ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    RemoveOrphans(parent);
    std::string name =
        parent + "/qlora-server-test-" + std::to_string(::getpid()) + "-XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~TempDir() { (void)RemoveRecursively(path_); }
  const std::string& path() const { return path_; }

 private:
  static void RemoveOrphans(const std::string& parent) {
    std::error_code unreadable;
    for (const auto& entry :
         std::filesystem::directory_iterator(parent, unreadable)) {
      int pid = 0;
      if (std::sscanf(entry.path().filename().c_str(), "qlora-server-test-%d-",
                      &pid) == 1 &&
          ::kill(pid, 0) != 0 && errno == ESRCH) {
        (void)RemoveRecursively(entry.path().string());
      }
    }
  }

  std::string path_;
};

inline std::string JobFile(const std::string& more = "") {
  return "apiVersion: qlora/v1\n"
         "name: test\n"
         "model: {base: tiny}\n"
         "method: lora\n"
         "data: {train: [{path: \"dataset:d\", format: text}]}\n" +
         more;
}

inline constexpr char kTwoNodes[] = "resources: {nodes: 2}\n";

class CoreHarness {
 public:
  CoreHarness() { Restart(); }

  // Loses everything that is not stored, as a crash does.
  void Restart() {
    store_.reset();
    store_ = SqliteStore::Open(dir_.path() + "/db").value();
    Timings timings = state_.timings;
    state_ = store_->Load().value();
    state_.timings = timings;
    state_.start_time = now;
    for (auto& [id, job] : state_.jobs) job.plan = MakePlan(job.record).value();
    Do([](Draft& draft) {
      ForgetConnections(draft);
      ExtendDeadlines(draft);
    });
  }

  // One transaction; returns its effects.
  std::vector<Effect> Do(const std::function<void(Draft&)>& event) {
    Draft draft(state_, now, 0.5);
    event(draft);
    Schedule(draft);
    Transaction transaction;
    transaction.draft = &draft;
    transaction.now = now;
    const absl::Status status = store_->Commit(transaction);
    EXPECT_TRUE(status.ok()) << status;
    std::vector<Effect> effects = std::move(draft.effects);
    std::move(draft).ApplyTo(state_);
    return effects;
  }

  void Advance(absl::Duration d) {
    now += d;
    Do([](Draft& draft) {
      CheckLeases(draft);
      CheckTimers(draft);
    });
  }

  std::string Submit(const std::string& more = "") {
    Job job;
    const std::string id = "j-" + std::to_string(++last_job_);
    job.mutable_job().set_job_id(id);
    job.mutable_job().set_name("test");
    job.mutable_job().set_project("default");
    const ParsedJob parsed = ParseJobFile(JobFile(more));
    EXPECT_TRUE(parsed.errors.empty())
        << SpecErrorsToStatus(parsed.errors, "test");
    job.mutable_job().set_priority(parsed.spec.priority);
    job.mutable_job().set_resolved_job_file(ResolvedJobFile(parsed.spec));
    job.plan = MakePlan(job.record).value();
    Do([&](Draft& draft) { QueueJob(draft, job); });
    now += absl::Milliseconds(1);
    return id;
  }

  // The node says hello with that many CPU devices.
  absl::StatusOr<qlora::v1::Welcome> Join(
      const std::string& name, int devices = 1,
      const std::string& boot = "boot-1",
      const std::vector<std::pair<std::string, int>>& inventory = {},
      bool new_spool = false) {
    qlora::v1::Hello hello;
    hello.set_node(name);
    hello.set_boot_id(boot);
    hello.set_process("the process of " + boot);
    if (!new_spool) hello.set_cluster_id(state_.cluster_id);
    const auto node = state_.nodes.find(name);
    if (node != state_.nodes.end()) {
      hello.set_last_command_seen(node->second.record.last_command());
    }
    for (int i = 0; i < devices; ++i) {
      auto& device = *hello.add_devices();
      device.set_name("cpu:" + std::to_string(i));
      device.set_kind("cpu");
    }
    for (const auto& [job, attempt] : inventory) {
      auto& item = *hello.add_inventory();
      item.set_job_id(job);
      item.set_attempt(attempt);
      const auto known = state_.attempts.find({job, attempt});
      item.set_term(known == state_.attempts.end() ? 1 : known->second.term());
    }
    absl::StatusOr<qlora::v1::Welcome> welcome =
        absl::InternalError("not called");
    Do([&](Draft& draft) { welcome = OnHello(draft, hello, ++last_stream_); });
    return welcome;
  }
  void Disconnect(const std::string& name) {
    const uint64_t stream = state_.nodes.at(name).stream;
    Do([&](Draft& draft) { OnDisconnect(draft, name, stream); });
  }
  void Heartbeat(const std::string& name, bool draining = false) {
    qlora::v1::Heartbeat heartbeat;
    heartbeat.set_draining(draining);
    Do([&](Draft& draft) { OnHeartbeat(draft, name, heartbeat); });
  }

  // An event of the job's newest attempt.
  void Event(const std::string& node, const std::string& job,
             const std::function<void(qlora::v1::WorkerEvent&)>& fill,
             int attempt = 0) {
    qlora::v1::WorkerEvent event;
    event.set_job_id(job);
    event.set_attempt(attempt > 0 ? attempt
                                  : state_.jobs.at(job).job().attempt());
    const auto known = state_.attempts.find({job, event.attempt()});
    if (known != state_.attempts.end()) event.set_term(known->second.term());
    fill(event);
    Do([&](Draft& draft) { OnAttemptEvent(draft, node, event); });
  }
  void Prepared(const std::string& node, const std::string& job) {
    Event(node, job, [](auto& e) {
      e.mutable_prepared()->set_rendezvous_address("127.0.0.1:1");
    });
  }
  void Running(const std::string& node, const std::string& job) {
    Event(node, job, [](auto& e) { e.mutable_running(); });
  }
  void Staged(const std::string& node, const std::string& job, int rank,
              int64_t step, bool final = false,
              const std::string& digest = "same") {
    Event(node, job, [&](auto& e) {
      auto& staged = *e.mutable_staged();
      staged.set_rank(rank);
      staged.set_step(step);
      staged.set_state_sha256(digest);
      staged.set_final(final);
      if (rank != 0) return;
      staged.add_files()->set_path("manifest.json");
      if (final) staged.add_output()->set_path("adapter_model.safetensors");
    });
  }
  void Ended(const std::string& node, const std::string& job,
             qlora::v1::FailureClass failure_class, bool stopped = false) {
    Event(node, job, [&](auto& e) {
      auto& ended = *e.mutable_ended();
      ended.set_failure_class(failure_class);
      ended.set_complete(
          failure_class == qlora::v1::FAILURE_CLASS_UNSPECIFIED && !stopped);
      ended.set_stopped(stopped);
      ended.set_message("the test says so");
    });
  }
  // A job on one node with one rank, up to RUNNING.
  std::string RunningJob(const std::string& node,
                         const std::string& more = "") {
    const std::string id = Submit(more);
    Prepared(node, id);
    Running(node, id);
    EXPECT_EQ(job(id).state(), qlora::v1::JOB_STATE_RUNNING);
    return id;
  }

  // A job on n1 and n2, which join, with one rank each, up to RUNNING.
  std::string RunningGang() {
    EXPECT_TRUE(Join("n1").ok());
    EXPECT_TRUE(Join("n2").ok());
    const std::string id = Submit(kTwoNodes);
    for (const char* node : {"n1", "n2"}) Prepared(node, id);
    for (const char* node : {"n1", "n2"}) Running(node, id);
    EXPECT_EQ(job(id).state(), qlora::v1::JOB_STATE_RUNNING);
    return id;
  }

  const qlora::v1::Job& job(const std::string& id) const {
    return state_.jobs.at(id).job();
  }
  const AttemptRecord& attempt(const std::string& id) const {
    return state_.attempts.at({id, job(id).attempt()});
  }
  qlora::v1::NodeState node(const std::string& name) const {
    return state_.nodes.at(name).state();
  }
  // What was sent to the node, by kind, oldest first.
  std::vector<qlora::v1::WorkerCommand> Sent(const std::string& node) const {
    std::vector<qlora::v1::WorkerCommand> commands;
    const auto it = state_.outbox.find(node);
    if (it == state_.outbox.end()) return commands;
    for (const Command& command : it->second) commands.push_back(*command);
    return commands;
  }
  int CountSent(const std::string& node,
                qlora::v1::WorkerCommand::CommandCase kind) const {
    int count = 0;
    for (const auto& command : Sent(node)) {
      count += command.command_case() == kind;
    }
    return count;
  }

  State& state() { return state_; }
  SqliteStore& store() { return *store_; }

  absl::Time now = absl::FromUnixSeconds(1'700'000'000);

 private:
  TempDir dir_;
  std::unique_ptr<SqliteStore> store_;
  State state_;
  int last_job_ = 0;
  uint64_t last_stream_ = 0;
};

}  // namespace qlora::server
