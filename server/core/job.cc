#include "server/core/job.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/plural.h"
#include "common/base/utf8.h"
#include "server/core/attempt.h"

namespace qlora::server {

using qlora::v1::JobState;
using qlora::v1::WorkerCommand;

namespace {

// Attempts that something is waited for of.
std::vector<AttemptKey> OpenAttempts(const Draft& draft) {
  std::vector<AttemptKey> keys;
  draft.attempts.ForEach([&](const AttemptKey& key, const AttemptRecord& a) {
    if (!IsTerminal(a.state()) || a.has_deadline()) keys.push_back(key);
  });
  return keys;
}

AttemptRecord* CurrentAttempt(Draft& draft, const Job& job) {
  const AttemptKey key{job.job().job_id(), job.job().attempt()};
  const AttemptRecord* attempt = draft.attempts.Find(key);
  if (attempt == nullptr || IsTerminal(attempt->state())) return nullptr;
  return draft.attempts.Mutable(key);
}

AttemptPart& PartOf(AttemptRecord& attempt, const Node& node) {
  AttemptPart* part = FindPart(attempt, node.name());
  if (part == nullptr) {
    part = attempt.add_parts();
    part->set_node(node.name());
    part->set_boot_id(node.record.boot_id());
  }
  return *part;
}

qlora::v1::PrepareAttempt PrepareFor(const Draft& draft, const Job& job,
                                     const AttemptRecord& attempt,
                                     const std::string& node) {
  qlora::v1::PrepareAttempt prepare;
  prepare.set_job_id(attempt.job_id());
  prepare.set_attempt(attempt.attempt());
  prepare.set_term(attempt.term());
  prepare.set_resolved_job_file(job.job().resolved_job_file());
  *prepare.mutable_job_create_time() = job.job().create_time();
  *prepare.mutable_model() = job.record.model();
  *prepare.mutable_inputs() = job.record.inputs();
  prepare.set_world_size(attempt.ranks_size());
  for (const auto& rank : attempt.ranks()) {
    if (rank.node() != node) continue;
    *prepare.add_ranks() = rank;
    if (rank.rank() == 0) prepare.set_rendezvous(true);
  }
  if (attempt.resume_step() > 0) {
    const auto* head =
        draft.checkpoints.Find({attempt.job_id(), attempt.resume_step()});
    prepare.set_resume_step(attempt.resume_step());
    *prepare.mutable_resume_files() = head->files();
  }
  prepare.set_micro_batch_halvings(job.job().micro_batch_halvings());
  return prepare;
}

// Sends Start to every part, or does nothing while one is not prepared.
void StartIfPrepared(Draft& draft, AttemptRecord& attempt) {
  for (const AttemptPart& part : attempt.parts()) {
    if (!part.prepared()) return;
  }
  attempt.set_state(ATTEMPT_STATE_READY);
  *attempt.mutable_deadline() =
      ToProto(draft.now + draft.state.timings.start_timeout);
  WorkerCommand command;
  auto& start = *command.mutable_start();
  start.set_job_id(attempt.job_id());
  start.set_attempt(attempt.attempt());
  start.set_rendezvous_address(attempt.rendezvous_address());
  for (const AttemptPart& part : attempt.parts()) {
    draft.Send(part.node(), command);
  }
}

void RunIfRunning(Draft& draft, AttemptRecord& attempt) {
  for (const AttemptPart& part : attempt.parts()) {
    if (!part.running()) return;
  }
  attempt.set_state(ATTEMPT_STATE_RUNNING);
  attempt.clear_deadline();
  Job& job = draft.ChangeJob(attempt.job_id());
  if (job.job().state() != JobState::JOB_STATE_STARTING) return;
  job.mutable_job().set_state(JobState::JOB_STATE_RUNNING);
  job.mutable_job().clear_reason();
  job.mutable_job().clear_failure_class();
  if (!job.job().has_start_time()) {
    *job.mutable_job().mutable_start_time() = ToProto(draft.now);
  }
  draft.Tell(attempt.job_id(), "Running",
             absl::StrCat("training on ", Plural(attempt.ranks_size(), "rank")),
             attempt.attempt());
}

// On request, with a checkpoint that the ranks on other nodes share: those must
// not be stopped before theirs is stored.
bool SavedAndLeft(const qlora::v1::AttemptEnded& ended) {
  return ended.stopped() &&
         (ended.failure_class() == qlora::v1::FAILURE_CLASS_UNSPECIFIED ||
          ended.failure_class() == qlora::v1::FAILURE_CLASS_DRAINED ||
          ended.failure_class() == qlora::v1::FAILURE_CLASS_PREEMPTED);
}

void OnEnded(Draft& draft, AttemptRecord& attempt, AttemptPart& part,
             const qlora::v1::AttemptEnded& reported) {
  qlora::v1::AttemptEnded ended = reported;
  ended.set_message(Abridged(reported.message(), kMaxTextBytes));
  part.set_ended(true);
  part.set_complete(ended.complete());
  part.set_stopped(ended.stopped());
  part.set_failure_class(ended.failure_class());
  part.set_message(ended.message());
  part.set_checkpoint_unusable(ended.checkpoint_unusable());
  part.set_least_memory(ended.least_memory());
  if (ended.complete()) return;
  const bool saved = SavedAndLeft(ended);
  const bool known =
      ended.failure_class() != qlora::v1::FAILURE_CLASS_UNSPECIFIED;
  const bool failed = !saved && known;
  const bool asked = attempt.state() == ATTEMPT_STATE_DRAINING;
  if (failed) {
    NoteFailure(attempt, ended.failure_class(), ended.message());
  } else if (saved && (known || !asked)) {
    NoteFailure(
        attempt,
        ended.failure_class() == qlora::v1::FAILURE_CLASS_PREEMPTED
            ? qlora::v1::FAILURE_CLASS_PREEMPTED
            : qlora::v1::FAILURE_CLASS_DRAINED,
        absl::StrCat("the ranks on ", part.node(), " were stopped",
                     ended.message().empty() ? "" : ": ", ended.message()));
  } else if (!asked) {
    NoteFailure(attempt, qlora::v1::FAILURE_CLASS_INTERNAL,
                absl::StrCat("the ranks on ", part.node(),
                             " ended without a reason: ", ended.message()));
  }
  if (failed && !asked) {
    draft.Tell(attempt.job_id(), "RankFailed",
               absl::StrCat(part.node(), ": ", ended.message()),
               attempt.attempt());
  }
  if (!asked) StopParts(draft, attempt, /*save=*/saved);
}

bool HasRank(const AttemptRecord& attempt, const std::string& node,
             int32_t rank) {
  return std::any_of(attempt.ranks().begin(), attempt.ranks().end(),
                     [&](const auto& assigned) {
                       return assigned.rank() == rank &&
                              assigned.node() == node;
                     });
}

// Names of the parts that `lacks` says something is missing of.
template <typename F>
std::string NodesThat(const AttemptRecord& attempt, F lacks) {
  std::vector<std::string> names;
  for (const AttemptPart& part : attempt.parts()) {
    if (!PartIsOver(part) && lacks(part)) names.push_back(part.node());
  }
  return absl::StrJoin(names, ", ");
}

// The ranks of a part did not end in time: its node gets no more work until
// its agent starts anew.
void GiveUpOnStop(Draft& draft, const AttemptKey& key) {
  AttemptRecord& attempt = *draft.attempts.Mutable(key);
  attempt.clear_deadline();
  for (AttemptPart& part : *attempt.mutable_parts()) {
    if (part.ended()) continue;
    part.set_lost(true);
    Node* node = draft.nodes.Mutable(part.node());
    if (node == nullptr || node->stream == 0) {
      part.set_departed(true);
    } else {
      node->record.mutable_node()->set_state(qlora::v1::NODE_STATE_QUARANTINED);
      if (draft.jobs.Find(key.first) == nullptr) continue;
      draft.Tell(key.first, "NodeQuarantined",
                 absl::StrCat(part.node(),
                              " did not end its ranks in time; it gets no "
                              "work until its agent is restarted"),
                 key.second);
    }
  }
  FinishIfOver(draft, key);
}

void OnDeadline(Draft& draft, const AttemptKey& key) {
  AttemptRecord& attempt = *draft.attempts.Mutable(key);
  switch (attempt.state()) {
    case ATTEMPT_STATE_PREPARING:
      NoteFailure(
          attempt, qlora::v1::FAILURE_CLASS_INFRA,
          absl::StrCat(
              NodesThat(attempt, [](const auto& p) { return !p.prepared(); }),
              " did not prepare in ",
              absl::FormatDuration(draft.state.timings.prepare_timeout)));
      break;
    case ATTEMPT_STATE_READY:
      NoteFailure(
          attempt, qlora::v1::FAILURE_CLASS_INFRA,
          absl::StrCat(
              NodesThat(attempt, [](const auto& p) { return !p.running(); }),
              " did not start training in ",
              absl::FormatDuration(draft.state.timings.start_timeout)));
      break;
    case ATTEMPT_STATE_RUNNING:
      NoteFailure(attempt, qlora::v1::FAILURE_CLASS_USER,
                  "the job's deadline has passed");
      break;
    default:
      return GiveUpOnStop(draft, key);
  }
  draft.Tell(key.first, "TimedOut", attempt.message(), key.second);
  StopParts(draft, attempt, /*save=*/false);
  FinishIfOver(draft, key);
}

// When the attempt has waited too long; InfiniteFuture if it may go on.
absl::Time DeadlineOf(const Draft& draft, const AttemptRecord& attempt) {
  if (attempt.has_deadline()) return FromProto(attempt.deadline());
  const Job* job = draft.jobs.Find(attempt.job_id());
  if (job == nullptr || job->plan->spec.deadline == absl::ZeroDuration() ||
      !job->job().has_start_time()) {
    return absl::InfiniteFuture();
  }
  absl::Time start = FromProto(job->job().start_time());
  if (job->record.has_resume_time()) {
    start = std::max(start, FromProto(job->record.resume_time()));
  }
  // Who reached its end in time has a lease to come back and say so.
  return std::max(start + job->plan->spec.deadline,
                  draft.state.open_since + draft.state.timings.lease);
}

// What stands in the way of resuming a job that is in that state.
std::string_view WhyNotResumed(JobState state) {
  switch (state) {
    case JobState::JOB_STATE_SUCCEEDED:
    case JobState::JOB_STATE_FAILED:
    case JobState::JOB_STATE_CANCELLING:
    case JobState::JOB_STATE_CANCELLED:
      return "one that ends does not start again; submit it anew";
    case JobState::JOB_STATE_BACKOFF:
      return "this one starts again by itself";
    default:
      return "this one has not stopped";
  }
}

}  // namespace

void QueueJob(Draft& draft, Job job) {
  const std::string id = job.job().job_id();
  qlora::v1::Job& view = job.mutable_job();
  view.set_state(JobState::JOB_STATE_QUEUED);
  view.set_revision(1);
  *view.mutable_create_time() = ToProto(draft.now);
  *job.record.mutable_queued_time() = view.create_time();
  draft.jobs.Put(id, std::move(job));
  draft.Emit(JobChanged{id});
  draft.Tell(id, "Queued", "the job was accepted");
}

absl::Status CancelJob(Draft& draft, const std::string& job_id,
                       std::string_view reason) {
  const JobState state = draft.jobs.Find(job_id)->job().state();
  if (state == JobState::JOB_STATE_CANCELLED ||
      state == JobState::JOB_STATE_CANCELLING) {
    return absl::OkStatus();
  }
  if (IsTerminal(state)) {
    return absl::FailedPreconditionError(absl::StrCat(
        job_id, " has ended (", ShortName(state), "): nothing to cancel"));
  }
  Job& job = draft.ChangeJob(job_id);
  std::string why =
      reason.empty() ? "cancelled by the user" : std::string(reason);
  if (state == JobState::JOB_STATE_HELD) {
    absl::StrAppend(&why, "; it was HELD: ", job.job().reason());
  }
  AttemptRecord* attempt = CurrentAttempt(draft, job);
  if (attempt == nullptr) {
    FinishJob(draft, job, JobState::JOB_STATE_CANCELLED,
              qlora::v1::FAILURE_CLASS_UNSPECIFIED, why);
    return absl::OkStatus();
  }
  job.mutable_job().set_state(JobState::JOB_STATE_CANCELLING);
  job.mutable_job().set_reason(why);
  const std::string nodes = NodesThat(
      *attempt, [&](const auto& part) { return !IsAway(draft, part.node()); });
  draft.Tell(job_id, "Cancelling",
             absl::StrCat(why, nodes.empty() ? "" : "; waits for the ranks on ",
                          nodes),
             attempt->attempt());
  const AttemptKey key{job_id, attempt->attempt()};
  if (attempt->state() != ATTEMPT_STATE_DRAINING) {
    StopParts(draft, *attempt, /*save=*/false);
  }
  FinishIfOver(draft, key);
  return absl::OkStatus();
}

absl::Status ResumeJob(Draft& draft, const std::string& job_id) {
  const JobState state = draft.jobs.Find(job_id)->job().state();
  if (state != JobState::JOB_STATE_HELD) {
    const std::string_view why = WhyNotResumed(state);
    return absl::FailedPreconditionError(absl::StrCat(
        job_id, " is ", ShortName(state), ": only a HELD job can be resumed; ",
        absl::string_view(why.data(), why.size())));
  }
  Job& job = draft.ChangeJob(job_id);
  qlora::v1::Job& view = job.mutable_job();
  view.set_state(JobState::JOB_STATE_QUEUED);
  view.clear_reason();
  view.clear_hint();
  if (view.failure_class() == qlora::v1::FAILURE_CLASS_OOM) {
    // There is more memory now, they say.
    view.clear_micro_batch_halvings();
  }
  view.clear_failure_class();
  view.clear_ranks();
  JobRecord& record = job.record;
  record.set_failures_without_progress(0);
  record.set_departures_without_progress(0);
  record.set_numerical_replayed(false);
  record.set_restarts_before_resume(view.restarts());
  record.clear_avoid_nodes();
  *record.mutable_resume_time() = ToProto(draft.now);
  *record.mutable_queued_time() = record.resume_time();
  const int64_t step = ResumeStep(draft, job_id);
  draft.Tell(job_id, "Resumed",
             step > 0
                 ? absl::StrCat("goes on from the checkpoint of step ", step)
                 : "starts from the beginning: it has no checkpoint",
             view.attempt());
  return absl::OkStatus();
}

void DeleteJob(Draft& draft, const std::string& job_id) {
  Job& job = draft.ChangeJob(job_id);
  job.record.set_deleting(true);
  if (!IsTerminal(job.job().state())) {
    // Cannot fail: the job has not ended.
    (void)CancelJob(draft, job_id, "deleted by the user");
  }
  const Job* now = draft.jobs.Find(job_id);
  if (now != nullptr && IsTerminal(now->job().state())) {
    RemoveJob(draft, job_id);
  }
}

void StartAttempt(Draft& draft, const std::string& job_id,
                  const std::vector<qlora::v1::RankAssignment>& ranks) {
  Job& job = draft.ChangeJob(job_id);
  qlora::v1::Job& view = job.mutable_job();
  view.set_attempt(std::max(view.attempt(), job.record.seen_attempt()) + 1);
  view.set_state(JobState::JOB_STATE_STARTING);
  view.set_reason(kBeingPrepared);
  view.clear_backoff_until();

  AttemptRecord attempt;
  attempt.set_job_id(job_id);
  attempt.set_attempt(view.attempt());
  attempt.set_state(ATTEMPT_STATE_PREPARING);
  attempt.set_term(draft.state.term);
  attempt.set_resume_step(ResumeStep(draft, job_id));
  *attempt.mutable_create_time() = ToProto(draft.now);
  *attempt.mutable_deadline() =
      ToProto(draft.now + draft.state.timings.prepare_timeout);
  *attempt.mutable_ranks() = {ranks.begin(), ranks.end()};
  *view.mutable_ranks() = attempt.ranks();
  for (const auto& rank : ranks) {
    PartOf(attempt, *draft.nodes.Find(rank.node()));
  }
  std::vector<std::string> names;
  for (AttemptPart& part : *attempt.mutable_parts()) {
    WorkerCommand command;
    *command.mutable_prepare() = PrepareFor(draft, job, attempt, part.node());
    part.set_prepare_command(draft.Send(part.node(), std::move(command)));
    names.push_back(part.node());
  }
  draft.Tell(
      job_id, "Placed",
      absl::StrCat(Plural(ranks.size(), "rank"), " on ",
                   absl::StrJoin(names, ", "),
                   attempt.resume_step() > 0
                       ? absl::StrCat(", from step ", attempt.resume_step())
                       : ""),
      view.attempt());
  draft.Emit(JobStarted{draft.now - FromProto(job.record.queued_time())});
  draft.attempts.Put({job_id, view.attempt()}, std::move(attempt));
}

void OnAttemptEvent(Draft& draft, const std::string& node,
                    const qlora::v1::WorkerEvent& event) {
  const AttemptKey key{event.job_id(), event.attempt()};
  const AttemptRecord* found = draft.attempts.Find(key);
  if (found == nullptr || event.term() != found->term()) return;
  AttemptRecord& attempt = *draft.attempts.Mutable(key);
  AttemptPart* part = FindPart(attempt, node);
  if (part == nullptr) return;
  if (PartIsOver(*part)) {
    if (event.has_ended()) OnRanksGone(draft, key, node);
    return;
  }
  if (event.has_prepared()) {
    part->set_prepared(true);
    if (!event.prepared().rendezvous_address().empty()) {
      attempt.set_rendezvous_address(
          Abridged(event.prepared().rendezvous_address(), kMaxTextBytes));
    }
    if (attempt.state() == ATTEMPT_STATE_PREPARING) {
      StartIfPrepared(draft, attempt);
    }
  } else if (event.has_running()) {
    part->set_running(true);
    if (event.running().has_data()) {
      *draft.ChangeJob(key.first).mutable_job().mutable_data() =
          event.running().data();
    }
    if (attempt.state() == ATTEMPT_STATE_READY) RunIfRunning(draft, attempt);
  } else if (event.has_staged()) {
    if (HasRank(attempt, node, event.staged().rank())) {
      OnStaged(draft, key, event.staged());
    }
  } else if (event.has_ended()) {
    OnEnded(draft, attempt, *part, event.ended());
    FinishIfOver(draft, key);
  }
}

void LosePart(Draft& draft, const AttemptKey& key, const std::string& node,
              std::string_view why) {
  AttemptRecord& attempt = *draft.attempts.Mutable(key);
  AttemptPart* part = FindPart(attempt, node);
  if (part == nullptr || PartIsOver(*part)) return;
  NoteFailure(attempt, qlora::v1::FAILURE_CLASS_INFRA, why);
  draft.Tell(key.first, "RanksLost", why, key.second);
  if (attempt.state() != ATTEMPT_STATE_DRAINING) {
    // The lost part's node too: its Prepare may still be on the way.
    StopParts(draft, attempt, /*save=*/false);
  }
  part->set_lost(true);
  part->set_departed(true);
  FinishIfOver(draft, key);
}

void CheckTimers(Draft& draft) {
  for (const AttemptKey& key : OpenAttempts(draft)) {
    if (DeadlineOf(draft, *draft.attempts.Find(key)) <= draft.now) {
      OnDeadline(draft, key);
    }
  }
  std::vector<std::string> ready;
  draft.jobs.ForEach([&](const std::string& id, const Job& job) {
    if (job.job().state() == JobState::JOB_STATE_BACKOFF &&
        FromProto(job.job().backoff_until()) <= draft.now) {
      ready.push_back(id);
    }
  });
  for (const std::string& id : ready) {
    Job& job = draft.ChangeJob(id);
    job.mutable_job().set_state(JobState::JOB_STATE_QUEUED);
    job.mutable_job().clear_backoff_until();
    *job.record.mutable_queued_time() = ToProto(draft.now);
  }
}

void ExtendDeadlines(Draft& draft) {
  const Timings& timings = draft.state.timings;
  for (const AttemptKey& key : OpenAttempts(draft)) {
    const AttemptRecord& attempt = *draft.attempts.Find(key);
    if (!attempt.has_deadline()) continue;
    absl::Duration wait = timings.stop_grace + timings.stop_margin;
    if (attempt.state() == ATTEMPT_STATE_PREPARING) {
      wait = timings.prepare_timeout;
    } else if (attempt.state() == ATTEMPT_STATE_READY) {
      wait = timings.start_timeout;
    }
    *draft.attempts.Mutable(key)->mutable_deadline() =
        ToProto(draft.now + wait);
  }
  // Of a clock that was set back since.
  const absl::Time latest = draft.now + timings.backoff_max;
  std::vector<std::string> late;
  draft.jobs.ForEach([&](const std::string& id, const Job& job) {
    if (FromProto(job.job().backoff_until()) > latest) late.push_back(id);
  });
  for (const std::string& id : late) {
    *draft.ChangeJob(id).mutable_job().mutable_backoff_until() =
        ToProto(latest);
  }
}

void ShiftWaits(State& state, absl::Duration by) {
  const auto shift = [&](google::protobuf::Timestamp& time) {
    time = ToProto(FromProto(time) + by);
  };
  state.start_time += by;
  state.open_since += by;
  for (auto& [name, node] : state.nodes) node.last_heartbeat += by;
  for (auto& [key, attempt] : state.attempts) {
    if (attempt.has_deadline()) shift(*attempt.mutable_deadline());
  }
  for (auto& [id, job] : state.jobs) {
    if (job.job().has_backoff_until()) {
      shift(*job.mutable_job().mutable_backoff_until());
    }
  }
}

}  // namespace qlora::server
