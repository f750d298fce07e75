#include "server/coordinator.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "server/core/job.h"
#include "server/core/job_plan.h"
#include "server/core/membership.h"
#include "server/core/scheduler.h"

namespace qlora::server {
namespace {

// Less is the clock being kept right.
constexpr absl::Duration kClockJump = absl::Seconds(1);

// Of a page of jobs: a client takes no more than kMaxMessageBytes.
constexpr size_t kMaxPageBytes = 2 << 20;

bool Newer(const Job& a, const Job& b) {
  return AgeOf(a.job()) > AgeOf(b.job());
}

bool Matches(const JobFilter& filter, const Job& job) {
  if (job.record.deleting() || job.job().project() != filter.project) {
    return false;
  }
  if (!filter.states.empty() && !filter.states.contains(job.job().state())) {
    return false;
  }
  return std::all_of(
      filter.labels.begin(), filter.labels.end(), [&](const auto& label) {
        const auto it = job.job().labels().find(label.first);
        return it != job.job().labels().end() && it->second == label.second;
      });
}

// What a caller can do about it: try again, unless another coordinator leads.
absl::Status NotWritten(const absl::Status& status) {
  if (absl::IsAborted(status)) return status;
  return absl::UnavailableError(
      absl::StrCat("the database cannot be written: ", status.message()));
}

// Plans of all jobs. One that this version cannot read must not keep the others
// waiting: the scheduler holds it.
void FillPlans(State& state) {
  for (auto& [id, job] : state.jobs) {
    auto plan = MakePlan(job.record);
    if (plan.ok()) {
      job.plan = *std::move(plan);
      continue;
    }
    LogWarning("job cannot be read", {{"job", id}, {"error", plan.status()}});
    auto unreadable = std::make_shared<JobPlan>();
    unreadable->error = plan.status();
    job.plan = std::move(unreadable);
  }
}

}  // namespace

JobAge AgeOf(const qlora::v1::Job& job) {
  return {job.create_time().seconds(), job.create_time().nanos(), job.job_id()};
}

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Create(
    const Timings& timings, Store* store, EffectSink* sink, Clock* clock) {
  ASSIGN_OR_RETURN(State state, store->Load());
  state.timings = timings;
  state.start_time = state.open_since = clock->Now();
  FillPlans(state);
  std::unique_ptr<Coordinator> coordinator(
      new Coordinator(std::move(state), store, sink, clock));
  RETURN_IF_ERROR(coordinator->Change([](Draft& draft) {
    ForgetConnections(draft);
    ExtendDeadlines(draft);
    return absl::OkStatus();
  }));
  return coordinator;
}

Coordinator::Coordinator(State state, Store* store, EffectSink* sink,
                         Clock* clock)
    : store_(store),
      sink_(sink),
      clock_(clock),
      cluster_id_(state.cluster_id),
      term_(state.term),
      state_(std::move(state)),
      random_(std::random_device{}()),
      last_now_(clock->Now()),
      last_steady_(clock->Steady()) {}

Draft Coordinator::NewDraft() {
  const absl::Time now = clock_->Now();
  const absl::Duration ran = clock_->Steady() - last_steady_;
  absl::Duration shift = now - last_now_ - ran;
  // Who did not run heard nobody: silence of that time is nobody's.
  const bool stood_still = ran > state_.timings.lease;
  if (stood_still) shift += ran;
  if (absl::AbsDuration(shift) > kClockJump) {
    LogWarning("the clock jumped, or this process stood still; leases move on",
               {{"by", absl::FormatDuration(shift)}});
    ShiftWaits(state_, shift);
  }
  // Nor could anyone return, or report an end, while nothing can be stored.
  if (!writable_ && !stood_still) ShiftWaits(state_, ran);
  if (!writable_ || stood_still) state_.open_since = now;
  last_now_ = now;
  last_steady_ += ran;
  return Draft(state_, now, std::uniform_real_distribution<double>()(random_));
}

absl::Status Coordinator::CommitLocked(Draft& draft,
                                       std::optional<RequestResult> request) {
  // What waits in an unchanged state goes on waiting.
  if (!scheduled_ || !draft.empty()) {
    const absl::Time start = absl::Now();
    Schedule(draft);
    sink_->OnSchedulerPass(absl::Now() - start);
  }
  Transaction transaction{.draft = &draft,
                          .request = std::move(request),
                          .events = events_,
                          .command_acks = command_acks_,
                          .now = draft.now};
  const bool quiet = draft.empty() && !transaction.request && events_.empty() &&
                     command_acks_.empty();
  if (!quiet) {
    const absl::Status status = store_->Commit(transaction);
    writable_ = status.ok();
    if (!writable_) {
      LogError("transaction failed", {{"error", status}});
      return NotWritten(status);
    }
  } else if (!writable_) {
    writable_ = store_->CheckWritable().ok();
  }
  scheduled_ = true;
  std::vector<Effect> effects = std::move(draft.effects);
  std::move(draft).ApplyTo(state_);
  // Of nodes that are removed meanwhile nothing is left.
  for (const auto& [node, number] : events_) {
    const auto it = state_.nodes.find(node);
    if (it == state_.nodes.end()) continue;
    it->second.record.set_last_event(number);
    effects_.push_back(EventsStored{node, number});
  }
  events_.clear();
  for (const auto& [node, number] : command_acks_) {
    const auto it = state_.outbox.find(node);
    if (it == state_.outbox.end()) continue;
    auto& outbox = it->second;
    while (!outbox.empty() && outbox.front()->number() <= number) {
      outbox.pop_front();
    }
  }
  command_acks_.clear();
  for (Effect& effect : effects) effects_.push_back(std::move(effect));
  return absl::OkStatus();
}

absl::Status Coordinator::Change(const std::function<absl::Status(Draft&)>& f) {
  {
    MutexLock lock(&mu_);
    Draft draft = NewDraft();
    RETURN_IF_ERROR(f(draft));
    RETURN_IF_ERROR(CommitLocked(draft));
  }
  PerformEffects();
  return absl::OkStatus();
}

void Coordinator::PerformEffects() {
  while (true) {
    std::deque<Effect> batch;
    {
      MutexLock lock(&mu_);
      if (effects_.empty() || performing_) return;
      performing_ = true;
      batch.swap(effects_);
    }
    for (const Effect& effect : batch) sink_->Perform(effect);
    MutexLock lock(&mu_);
    performing_ = false;
  }
}

absl::StatusOr<std::optional<std::string>> Coordinator::FindResultLocked(
    const std::string& request_id, const std::string& digest) {
  if (request_id.empty() || request_id.size() > 64) {
    return absl::InvalidArgumentError(
        "request_id: must have 1 to 64 bytes, unique for each request");
  }
  if (draining_) {
    return absl::UnavailableError("the coordinator is shutting down");
  }
  ASSIGN_OR_RETURN(const auto known, store_->FindRequest(request_id));
  if (!known) return std::optional<std::string>();
  if (known->digest == digest) return known->response;
  return absl::InvalidArgumentError(
      absl::StrCat("request_id ", request_id, " was used for another request"));
}

absl::StatusOr<std::optional<std::string>> Coordinator::FindResult(
    const std::string& request_id, const std::string& digest) {
  MutexLock lock(&mu_);
  return FindResultLocked(request_id, digest);
}

absl::StatusOr<std::string> Coordinator::Mutate(
    const std::string& request_id, const std::string& digest,
    const std::function<absl::StatusOr<std::string>(Draft&)>& change) {
  std::string response;
  {
    MutexLock lock(&mu_);
    ASSIGN_OR_RETURN(auto known, FindResultLocked(request_id, digest));
    if (known) return *std::move(known);
    Draft draft = NewDraft();
    ASSIGN_OR_RETURN(response, change(draft));
    RETURN_IF_ERROR(
        CommitLocked(draft, RequestResult{request_id, digest, response}));
  }
  PerformEffects();
  return response;
}

absl::StatusOr<Job> Coordinator::FindJob(const std::string& reference,
                                         const std::string& project) const {
  if (reference.empty()) {
    return absl::InvalidArgumentError("job: name one by id, name or @last");
  }
  MutexLock lock(&mu_);
  const auto visible = [&](const Job& job) {
    return !job.record.deleting() && job.job().project() == project;
  };
  const auto exact = state_.jobs.find(reference);
  if (exact != state_.jobs.end() && visible(exact->second)) {
    return exact->second;
  }
  const Job* newest_named = nullptr;
  std::vector<const Job*> prefixed;
  for (const auto& [id, job] : state_.jobs) {
    if (!visible(job)) continue;
    if ((job.job().name() == reference || reference == "@last") &&
        (newest_named == nullptr || Newer(job, *newest_named))) {
      newest_named = &job;
    }
    if (absl::StartsWith(id, reference)) prefixed.push_back(&job);
  }
  if (newest_named != nullptr) return *newest_named;
  if (prefixed.size() == 1) return *prefixed.front();
  if (prefixed.size() > 1) {
    return absl::AbortedError(absl::StrCat(
        "\"", reference, "\" is the beginning of ", prefixed.size(),
        " job ids, such as ", prefixed[0]->job().job_id(), " and ",
        prefixed[1]->job().job_id()));
  }
  if (reference == "@last") {
    return absl::NotFoundError(
        absl::StrCat("there are no jobs in project ", project));
  }
  return absl::NotFoundError(
      absl::StrCat("no job \"", reference, "\" in project ", project));
}

JobPage Coordinator::ListJobs(const JobFilter& filter,
                              const std::optional<JobAge>& after,
                              int limit) const {
  MutexLock lock(&mu_);
  std::vector<std::pair<JobAge, const Job*>> jobs;
  for (const auto& [id, job] : state_.jobs) {
    if (!Matches(filter, job)) continue;
    JobAge age = AgeOf(job.job());
    if (!after || age < *after) jobs.emplace_back(std::move(age), &job);
  }
  const size_t count = std::min(jobs.size(), static_cast<size_t>(limit));
  std::partial_sort(jobs.begin(), jobs.begin() + count, jobs.end(),
                    std::greater<>());
  JobPage page;
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    const qlora::v1::Job& job = jobs[i].second->job();
    bytes += job.ByteSizeLong();
    if (i > 0 && bytes > kMaxPageBytes) break;
    page.jobs.push_back(job);
  }
  page.more = page.jobs.size() < jobs.size();
  return page;
}

std::vector<qlora::v1::Node> Coordinator::ListNodes() const {
  MutexLock lock(&mu_);
  std::vector<qlora::v1::Node> nodes;
  for (const auto& [name, node] : state_.nodes) {
    nodes.push_back(NodeView(state_, node));
  }
  return nodes;
}

void Coordinator::Read(const std::function<void(const State&)>& f) const {
  MutexLock lock(&mu_);
  f(state_);
}

absl::Status Coordinator::MatchTermLocked(const std::string& node,
                                          int64_t seen) {
  if (seen <= state_.term) return absl::OkStatus();
  const absl::StatusOr<int64_t> term = store_->RaiseTerm(seen);
  if (!term.ok()) return NotWritten(term.status());
  LogWarning(
      "a node has seen a newer term: this database is an older copy that was "
      "restored, or another coordinator leads from a copy of it",
      {{"node", node}, {"term", state_.term}, {"raised_to", *term}});
  state_.term = *term;
  term_ = *term;
  // Workers refuse commands of older terms.
  for (auto& [name, commands] : state_.outbox) {
    for (Command& command : commands) {
      auto renewed = std::make_shared<qlora::v1::WorkerCommand>(*command);
      renewed->set_term(*term);
      command = std::move(renewed);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<qlora::v1::Welcome> Coordinator::Hello(
    const qlora::v1::Hello& hello, uint64_t stream) {
  qlora::v1::Welcome welcome;
  {
    MutexLock lock(&mu_);
    Draft flush = NewDraft();
    ASSIGN_OR_RETURN(const int64_t seen, TermSeen(state_, hello));
    // It was heard, even if that cannot be stored.
    const auto known = state_.nodes.find(hello.node());
    if (known != state_.nodes.end() &&
        known->second.record.boot_id() == hello.boot_id()) {
      known->second.last_heartbeat = flush.now;
    }
    // Numbers taken in but not stored belong to the state that Hello sees.
    RETURN_IF_ERROR(CommitLocked(flush));
    RETURN_IF_ERROR(MatchTermLocked(hello.node(), seen));
    Draft draft = NewDraft();
    ASSIGN_OR_RETURN(welcome, OnHello(draft, hello, stream));
    const Timings& timings = state_.timings;
    const auto to_proto = [](absl::Duration d) {
      google::protobuf::Duration result;
      result.set_seconds(absl::ToInt64Seconds(d));
      result.set_nanos(
          static_cast<int32_t>(absl::ToInt64Nanoseconds(d % absl::Seconds(1))));
      return result;
    };
    *welcome.mutable_lease() = to_proto(timings.lease);
    *welcome.mutable_heartbeat_interval() = to_proto(timings.heartbeat);
    if (hello.cluster_id().empty()) {
      // A new spool: what was sent to the old one is void.
      command_acks_[hello.node()] =
          draft.nodes.Find(hello.node())->record.last_command();
    } else if (hello.last_command_seen() > 0) {
      command_acks_[hello.node()] = hello.last_command_seen();
    }
    RETURN_IF_ERROR(CommitLocked(draft));
  }
  PerformEffects();
  return welcome;
}

absl::Status Coordinator::CheckStreamLocked(const std::string& node,
                                            uint64_t stream) const {
  const auto it = state_.nodes.find(node);
  if (it == state_.nodes.end() || it->second.stream != stream) {
    return absl::AbortedError("this stream was replaced or its lease ran out");
  }
  return absl::OkStatus();
}

bool Coordinator::HasPartLocked(const std::string& node,
                                const qlora::v1::WorkerEvent& event) const {
  const auto it = state_.attempts.find({event.job_id(), event.attempt()});
  return state_.jobs.contains(event.job_id()) && it != state_.attempts.end() &&
         it->second.term() == event.term() &&
         std::any_of(it->second.parts().begin(), it->second.parts().end(),
                     [&](const auto& part) { return part.node() == node; });
}

uint64_t Coordinator::LastEventLocked(const std::string& node) const {
  const auto pending = events_.find(node);
  if (pending != events_.end()) return pending->second;
  return state_.nodes.at(node).record.last_event();
}

absl::Status Coordinator::Heartbeat(const std::string& node, uint64_t stream,
                                    const qlora::v1::Heartbeat& heartbeat) {
  {
    MutexLock lock(&mu_);
    RETURN_IF_ERROR(CheckStreamLocked(node, stream));
    Draft draft = NewDraft();
    OnHeartbeat(draft, node, heartbeat);
    Node& known = state_.nodes.at(node);
    if (draft.nodes.Find(node)->state() == known.state()) {
      // Leases are not stored.
      known.last_heartbeat = draft.now;
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(CommitLocked(draft));
  }
  PerformEffects();
  return absl::OkStatus();
}

absl::Status Coordinator::Event(const std::string& node, uint64_t stream,
                                const qlora::v1::WorkerEvent& event) {
  {
    MutexLock lock(&mu_);
    RETURN_IF_ERROR(CheckStreamLocked(node, stream));
    if (event.number() <= LastEventLocked(node)) return absl::OkStatus();
    Draft draft = NewDraft();
    OnAttemptEvent(draft, node, event);
    if (event.has_notice() && HasPartLocked(node, event)) {
      draft.Tell(event.job_id(), Abridged(event.notice().type(), kMaxTextBytes),
                 Abridged(event.notice().message(), kMaxTextBytes),
                 event.attempt());
    }
    const auto pending = events_.find(node);
    const std::optional<uint64_t> before =
        pending == events_.end() ? std::nullopt
                                 : std::optional<uint64_t>(pending->second);
    events_[node] = event.number();
    if (absl::Status status = CommitLocked(draft); !status.ok()) {
      // It was not stored: the worker sends it again.
      if (before) {
        events_[node] = *before;
      } else {
        events_.erase(node);
      }
      return status;
    }
  }
  PerformEffects();
  return absl::OkStatus();
}

absl::StatusOr<bool> Coordinator::AcceptEvent(
    const std::string& node, uint64_t stream,
    const qlora::v1::WorkerEvent& event) {
  MutexLock lock(&mu_);
  RETURN_IF_ERROR(CheckStreamLocked(node, stream));
  if (event.number() <= LastEventLocked(node)) return false;
  events_[node] = event.number();
  return event.has_task_output() || HasPartLocked(node, event);
}

absl::Status Coordinator::AckCommands(const std::string& node, uint64_t stream,
                                      uint64_t number) {
  MutexLock lock(&mu_);
  RETURN_IF_ERROR(CheckStreamLocked(node, stream));
  uint64_t& acked = command_acks_[node];
  acked = std::max(acked, number);
  return absl::OkStatus();
}

void Coordinator::Disconnect(const std::string& node, uint64_t stream) {
  const absl::Status status = Change([&](Draft& draft) {
    OnDisconnect(draft, node, stream);
    return absl::OkStatus();
  });
  if (status.ok()) return;
  LogWarning("disconnect not stored", {{"node", node}, {"error", status}});
  {
    MutexLock lock(&mu_);
    if (!CheckStreamLocked(node, stream).ok()) return;
    state_.nodes.at(node).stream = 0;
    effects_.push_back(ConnectionBroke(node));
  }
  PerformEffects();
}

std::vector<Command> Coordinator::CommandsAfter(const std::string& node,
                                                uint64_t number,
                                                size_t limit) const {
  MutexLock lock(&mu_);
  std::vector<Command> commands;
  const auto it = state_.outbox.find(node);
  if (it == state_.outbox.end()) return commands;
  for (const Command& command : it->second) {
    if (command->number() <= number) continue;
    commands.push_back(command);
    if (commands.size() == limit) break;
  }
  return commands;
}

absl::Status Coordinator::SendCommand(const std::string& node,
                                      qlora::v1::WorkerCommand command) {
  // With room for what is around it.
  constexpr size_t kMaxCommandBytes = kMaxMessageBytes - 1024;
  if (command.ByteSizeLong() > kMaxCommandBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the request makes a message of ", command.ByteSizeLong(),
                     " bytes to the worker; at most ", kMaxCommandBytes,
                     " are sent: shorten its texts or name fewer files"));
  }
  return Change([&](Draft& draft) -> absl::Status {
    const Node* found = draft.nodes.Find(node);
    if (found == nullptr) {
      return absl::NotFoundError(absl::StrCat("no node ", node));
    }
    // What goes from here on is told to the task that is on its way.
    if (command.has_run_task() && !found->schedulable()) {
      return absl::UnavailableError(
          absl::StrCat("node ", node, " has just gone; try again"));
    }
    draft.Send(node, command);
    return absl::OkStatus();
  });
}

absl::Status Coordinator::Tick() {
  return Change([](Draft& draft) {
    CheckLeases(draft);
    CheckTimers(draft);
    return absl::OkStatus();
  });
}

absl::Status Coordinator::CheckReady() {
  if (draining_) {
    return absl::UnavailableError("the coordinator is shutting down");
  }
  MutexLock lock(&mu_);
  return store_->CheckWritable();
}

}  // namespace qlora::server
