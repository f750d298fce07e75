#include "worker/agent/supervisor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/log.h"

namespace qlora::agent {
namespace {

// An id becomes a directory's name.
bool IsSafeName(const std::string& name) {
  return IsSafeRelativePath(name) && name.find('/') == std::string::npos;
}

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) +
         absl::Nanoseconds(duration.nanos());
}

}  // namespace

Supervisor::Supervisor(Environment environment)
    : environment_(std::move(environment)) {
  TakeOver();
  const absl::Status removed =
      RemoveRecursively(environment_.directory + "/tasks");
  if (!removed.ok()) {
    LogWarning("leftovers stay behind", {{"error", removed}});
  }
}

Supervisor::~Supervisor() = default;

void Supervisor::TakeOver() {
  for (const AttemptRecord& record : LoadRecords(environment_.directory)) {
    v1::PrepareAttempt name;
    name.set_job_id(record.job_id());
    name.set_attempt(record.attempt());
    Add(name, record.term()).TakeOver(record);
  }
  UpdateInventory();
}

Attempt& Supervisor::Add(const v1::PrepareAttempt& command, int64_t term) {
  auto& attempt = attempts_[{command.job_id(), command.attempt()}];
  attempt = std::make_shared<Attempt>(environment_, command, term, [this] {
    UpdateInventory();
    Sweep();
  });
  return *attempt;
}

void Supervisor::Handle(v1::WorkerCommand command) {
  environment_.loop.Post(
      [this, command = std::move(command)] { Obey(command); });
}

void Supervisor::Obey(const v1::WorkerCommand& command) {
  switch (command.command_case()) {
    case v1::WorkerCommand::kPrepare:
      return Prepare(command.prepare(), command.prepare().term());
    case v1::WorkerCommand::kStart: {
      const v1::StartAttempt& start = command.start();
      const auto it = attempts_.find({start.job_id(), start.attempt()});
      if (it != attempts_.end()) it->second->Start(start);
      return;
    }
    case v1::WorkerCommand::kStop:
      return Stop(command.stop(), command.stop().term());
    case v1::WorkerCommand::kRunTask:
      return RunTask(command.run_task(), command.term());
    case v1::WorkerCommand::kCancelTask: {
      const auto it = tasks_.find(command.cancel_task().task_id());
      if (it != tasks_.end()) it->second->Cancel();
      return;
    }
    case v1::WorkerCommand::COMMAND_NOT_SET:
      LogWarning("a command that this version does not know",
                 {{"number", command.number()}});
      return;
  }
}

void Supervisor::Prepare(const v1::PrepareAttempt& command, int64_t term) {
  const Key key = {command.job_id(), command.attempt()};
  if (attempts_.contains(key)) return;
  if (!IsSafeName(command.job_id()) || command.ranks().empty()) {
    return EmitEnded(key, term,
                     {.failure_class = v1::FAILURE_CLASS_INTERNAL,
                      .message = "a malformed Prepare"});
  }
  if (draining_) {
    return EmitEnded(key, term,
                     {.failure_class = v1::FAILURE_CLASS_DRAINED,
                      .message = "the worker is shutting down"});
  }
  for (const auto& [other, attempt] : attempts_) {
    if (other.first != key.first) continue;
    if (other.second > key.second) return;
    attempt->Stop(/*save=*/false, absl::ZeroDuration(),
                  {.failure_class = v1::FAILURE_CLASS_INFRA,
                   .message = "superseded by a newer attempt"});
  }
  LogInfo("attempt is being prepared", {{"job", command.job_id()},
                                        {"attempt", command.attempt()},
                                        {"ranks", command.ranks_size()}});
  Add(command, term).Prepare();
  UpdateInventory();
}

void Supervisor::EmitEnded(const Key& key, int64_t term,
                           const AgentCause& cause) {
  v1::WorkerEvent event;
  event.set_job_id(key.first);
  event.set_attempt(key.second);
  event.set_term(term);
  *event.mutable_ended() = DecideOutcome({}, cause);
  environment_.emit(std::move(event));
}

void Supervisor::Stop(const v1::StopAttempt& command, int64_t term) {
  const Key key = {command.job_id(), command.attempt()};
  const auto it = attempts_.find(key);
  if (it == attempts_.end()) {
    // Nobody must wait for it.
    return EmitEnded(key, term,
                     {.failure_class = v1::FAILURE_CLASS_UNSPECIFIED,
                      .message = "no such attempt is on this node"});
  }
  it->second->Stop(command.save(), ToDuration(command.grace()),
                   {.failure_class = v1::FAILURE_CLASS_UNSPECIFIED,
                    .message = "stopped by the coordinator"});
}

void Supervisor::RunTask(const v1::RunTask& command, int64_t term) {
  if (tasks_.contains(command.task_id())) return;
  if (!IsSafeName(command.task_id()) || draining_) {
    v1::WorkerEvent event;
    event.set_term(term);
    v1::TaskOutput& output = *event.mutable_task_output();
    output.set_task_id(command.task_id());
    output.set_done(true);
    output.set_failure_class(v1::FAILURE_CLASS_INFRA);
    output.set_error("the worker cannot take the task");
    return environment_.emit(std::move(event));
  }
  auto task =
      std::make_shared<Task>(environment_, command, term, [this] { Sweep(); });
  tasks_[command.task_id()] = task;
  task->Run();
}

void Supervisor::Decide(
    google::protobuf::RepeatedPtrField<v1::Decision> decisions) {
  environment_.loop.Post([this, decisions = std::move(decisions)] {
    for (const v1::Decision& decision : decisions) {
      const auto it = attempts_.find({decision.job_id(), decision.attempt()});
      if (it == attempts_.end()) continue;
      Attempt& attempt = *it->second;
      if (decision.action() == v1::Decision::ACTION_HOLD) attempt.Hold();
      if (decision.action() == v1::Decision::ACTION_KEEP) attempt.GoOn();
      if (decision.action() != v1::Decision::ACTION_KILL) continue;
      attempt.Stop(
          /*save=*/false, absl::ZeroDuration(),
          {.failure_class = v1::FAILURE_CLASS_UNSPECIFIED,
           .message = attempt.left()
                          ? "the attempt was over before its worker was back"
                          : "ended by the coordinator"});
    }
  });
}

void Supervisor::SetConnected(bool connected) {
  environment_.loop.Post([this, connected] {
    environment_.metrics.SetConnected(connected);
    connected_ = connected;
    if (draining_) Sweep();
    environment_.loop.CancelTimer(alone_timer_);
    if (connected) return;
    alone_timer_ =
        environment_.loop.RunAfter(environment_.timeouts.alone, [this] {
          StopAll(absl::Minutes(5),
                  {.failure_class = v1::FAILURE_CLASS_INFRA,
                   .message = "the coordinator was away for too long"});
        });
  });
}

void Supervisor::StopAll(absl::Duration grace, const AgentCause& cause) {
  // Stop may end an attempt, which only marks it for Sweep.
  for (const auto& [key, attempt] : attempts_) {
    attempt->Stop(/*save=*/true, grace, cause);
  }
}

void Supervisor::Drain(absl::Duration grace, std::function<void()> done) {
  environment_.loop.Post([this, grace, done = std::move(done)] {
    draining_ = true;
    on_drained_ = done;
    StopAll(grace, {.failure_class = v1::FAILURE_CLASS_DRAINED,
                    .message = "the worker is shutting down"});
    for (const auto& [id, task] : tasks_) task->Cancel();
    Sweep();
  });
}

void Supervisor::Sweep() {
  if (sweeping_) return;
  sweeping_ = true;
  environment_.loop.Post([this] {
    sweeping_ = false;
    std::erase_if(attempts_,
                  [](const auto& entry) { return entry.second->settled(); });
    std::erase_if(tasks_,
                  [](const auto& entry) { return entry.second->settled(); });
    UpdateInventory();
    if (on_drained_ && Drained()) std::exchange(on_drained_, nullptr)();
  });
}

bool Supervisor::Drained() const {
  return tasks_.empty() &&
         std::ranges::all_of(attempts_, [this](const auto& entry) {
           const Attempt& attempt = *entry.second;
           return attempt.left() ||
                  (attempt.resting() && (attempt.held() || !connected_));
         });
}

void Supervisor::UpdateInventory() {
  std::vector<v1::AttemptInventory> inventory;
  int ranks = 0;
  for (const auto& [key, attempt] : attempts_) {
    if (attempt->ended()) continue;
    inventory.push_back(attempt->inventory());
    ranks += inventory.back().ranks_size();
  }
  environment_.metrics.SetRanks(ranks);
  MutexLock lock(&mu_);
  inventory_ = std::move(inventory);
}

std::vector<v1::AttemptInventory> Supervisor::Inventory() const {
  MutexLock lock(&mu_);
  return inventory_;
}

}  // namespace qlora::agent
