#include "server/core/attempt.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"

namespace qlora::server {

using qlora::v1::FailureClass;
using qlora::v1::JobState;

namespace {

// Attempts without a newer checkpoint after which a person must look.
constexpr int kMaxWithoutProgress = 3;
// Restarts after a defect of this software.
constexpr int kMaxInternalRestarts = 2;

// The cause is known for certain, not a consequence of another rank's end.
bool IsDefinite(FailureClass failure_class) {
  return failure_class == qlora::v1::FAILURE_CLASS_USER ||
         failure_class == qlora::v1::FAILURE_CLASS_NUMERICAL ||
         failure_class == qlora::v1::FAILURE_CLASS_OOM ||
         failure_class == qlora::v1::FAILURE_CLASS_DISK;
}

void Hold(Draft& draft, Job& job, FailureClass failure_class,
          std::string_view reason) {
  job.mutable_job().set_state(JobState::JOB_STATE_HELD);
  job.mutable_job().set_failure_class(failure_class);
  job.mutable_job().set_reason(std::string(reason));
  draft.Tell(job.job().job_id(), "Held", reason, job.job().attempt());
}

absl::Duration BackoffDelay(const Draft& draft, int failures) {
  const Timings& timings = draft.state.timings;
  const absl::Duration full =
      std::min(timings.backoff_max,
               timings.backoff * std::exp2(std::max(0, failures - 1)));
  return full * (0.5 + 0.5 * draft.jitter);
}

void Retry(Draft& draft, Job& job, const AttemptRecord& attempt,
           std::string_view why) {
  qlora::v1::Job& view = job.mutable_job();
  const absl::Duration delay =
      BackoffDelay(draft, job.record.failures_without_progress());
  view.set_state(JobState::JOB_STATE_BACKOFF);
  *view.mutable_backoff_until() = ToProto(draft.now + delay);
  view.set_restarts(view.restarts() + 1);
  view.set_reason(absl::StrCat("starts again from step ", view.head_step(),
                               ": ",
                               absl::string_view(why.data(), why.size())));
  view.clear_ranks();
  job.record.clear_avoid_nodes();
  for (const AttemptPart& part : attempt.parts()) {
    if (part.lost() ||
        part.failure_class() != qlora::v1::FAILURE_CLASS_UNSPECIFIED) {
      job.record.add_avoid_nodes(part.node());
    }
  }
  draft.Tell(view.job_id(), "Restarting", view.reason(), attempt.attempt());
  draft.Emit(JobRestarted{ShortName(attempt.failure_class())});
}

int RestartLimit(const Job& job, FailureClass failure_class) {
  const int limit = job.plan->spec.restart.max;
  return failure_class == qlora::v1::FAILURE_CLASS_INTERNAL
             ? std::min(limit, kMaxInternalRestarts)
             : limit;
}

// INFRA, OOM, INTERNAL: again, within bounds.
void RetryOrGiveUp(Draft& draft, Job& job, const AttemptRecord& attempt) {
  const FailureClass failure_class = attempt.failure_class();
  if (job.record.failures_without_progress() >= kMaxWithoutProgress) {
    return Hold(draft, job, failure_class,
                absl::StrCat(kMaxWithoutProgress,
                             " attempts ended without a newer checkpoint; the "
                             "last: ",
                             attempt.message()));
  }
  if (job.job().restarts() >= RestartLimit(job, failure_class)) {
    return FinishJob(draft, job, JobState::JOB_STATE_FAILED, failure_class,
                     absl::StrCat("after ", job.job().restarts(),
                                  " restarts: ", attempt.message()));
  }
  Retry(draft, job, attempt, attempt.message());
}

// Saved and left on request: goes on elsewhere or later, uncounted.
void Requeue(Draft& draft, Job& job, const AttemptRecord& attempt) {
  qlora::v1::Job& view = job.mutable_job();
  view.set_state(JobState::JOB_STATE_BACKOFF);
  *view.mutable_backoff_until() =
      ToProto(draft.now + draft.state.timings.backoff);
  view.set_reason(attempt.message());
  view.clear_ranks();
  draft.Tell(view.job_id(), "Drained", attempt.message(), attempt.attempt());
  draft.Emit(JobRestarted{ShortName(attempt.failure_class())});
}

void DecideAfterFailure(Draft& draft, Job& job, const AttemptRecord& attempt) {
  const FailureClass failure_class = attempt.failure_class();
  if (failure_class == qlora::v1::FAILURE_CLASS_DRAINED ||
      failure_class == qlora::v1::FAILURE_CLASS_PREEMPTED) {
    return Requeue(draft, job, attempt);
  }
  JobRecord& record = job.record;
  record.set_failures_without_progress(record.failures_without_progress() + 1);
  job.mutable_job().set_failure_class(failure_class);
  switch (failure_class) {
    case qlora::v1::FAILURE_CLASS_USER:
      return FinishJob(draft, job, JobState::JOB_STATE_FAILED, failure_class,
                       attempt.message());
    case qlora::v1::FAILURE_CLASS_DISK:
      return Hold(draft, job, failure_class, attempt.message());
    case qlora::v1::FAILURE_CLASS_NUMERICAL:
      if (record.numerical_replayed()) {
        return Hold(draft, job, failure_class,
                    absl::StrCat("again after a replay: ", attempt.message()));
      }
      record.set_numerical_replayed(true);
      return Retry(draft, job, attempt, attempt.message());
    default:
      return RetryOrGiveUp(draft, job, attempt);
  }
}

// Keeps the newest `keep` checkpoints; the files of others go with the next
// collection.
void ExpireCheckpoints(Draft& draft, const Job& job) {
  std::vector<CheckpointKey> keys;
  draft.checkpoints.ForEach([&](const CheckpointKey& key, const auto&) {
    if (key.first == job.job().job_id()) keys.push_back(key);
  });
  const size_t keep = std::max(1, job.plan->spec.checkpoint.keep);
  for (size_t i = 0; i + keep < keys.size(); ++i) {
    draft.checkpoints.Erase(keys[i]);
  }
}

// All ranks staged the step with the same state.
void CommitCheckpoint(Draft& draft, AttemptRecord& attempt,
                      const qlora::v1::RankStaged& first,
                      absl::Time first_staged) {
  Job& job = draft.ChangeJob(attempt.job_id());
  qlora::v1::Checkpoint checkpoint;
  checkpoint.set_job_id(attempt.job_id());
  checkpoint.set_step(first.step());
  checkpoint.set_attempt(attempt.attempt());
  checkpoint.set_state(qlora::v1::CHECKPOINT_STATE_COMMITTED);
  checkpoint.set_manifest_sha256(first.manifest_sha256());
  *checkpoint.mutable_files() = first.files();
  int64_t bytes = 0;
  for (const auto& file : first.files()) bytes += file.size_bytes();
  checkpoint.set_size_bytes(bytes);
  *checkpoint.mutable_commit_time() = ToProto(draft.now);
  draft.checkpoints.Put({attempt.job_id(), first.step()},
                        std::move(checkpoint));
  job.mutable_job().set_head_step(first.step());
  job.record.set_failures_without_progress(0);
  job.record.set_numerical_replayed(false);
  if (first.final()) {
    *job.mutable_job().mutable_output() = first.output();
    attempt.set_final_committed(true);
  }
  ExpireCheckpoints(draft, job);
  draft.Tell(attempt.job_id(), "CheckpointCommitted",
             absl::StrCat("step ", first.step(), ", ", bytes, " bytes"),
             attempt.attempt());
  draft.Emit(
      CheckpointCommitted{attempt.job_id(), bytes, draft.now - first_staged});
}

// Forgets what is staged for `step` and before.
void DropStaged(AttemptRecord& attempt, int64_t step) {
  auto& staged = *attempt.mutable_staged();
  staged.erase(std::remove_if(staged.begin(), staged.end(),
                              [&](const StagedRank& rank) {
                                return rank.staged().step() <= step;
                              }),
               staged.end());
}

AttemptState EndState(const AttemptRecord& attempt, const Job& job) {
  if (job.job().state() == JobState::JOB_STATE_CANCELLING) {
    return ATTEMPT_STATE_CANCELLED;
  }
  if (attempt.final_committed()) return ATTEMPT_STATE_SUCCEEDED;
  for (const AttemptPart& part : attempt.parts()) {
    if (part.lost()) return ATTEMPT_STATE_LOST;
  }
  return ATTEMPT_STATE_FAILED;
}

}  // namespace

AttemptPart* FindPart(AttemptRecord& attempt, std::string_view node) {
  for (AttemptPart& part : *attempt.mutable_parts()) {
    if (part.node() == node) return &part;
  }
  return nullptr;
}

bool PartIsOver(const AttemptPart& part) { return part.ended() || part.lost(); }

void NoteFailure(AttemptRecord& attempt, FailureClass failure_class,
                 std::string_view message) {
  const FailureClass known = attempt.failure_class();
  if (known != qlora::v1::FAILURE_CLASS_UNSPECIFIED &&
      (IsDefinite(known) || !IsDefinite(failure_class))) {
    return;
  }
  attempt.set_failure_class(failure_class);
  attempt.set_message(std::string(message));
}

void StopParts(Draft& draft, AttemptRecord& attempt, bool save) {
  const Timings& timings = draft.state.timings;
  attempt.set_state(ATTEMPT_STATE_DRAINING);
  *attempt.mutable_deadline() =
      ToProto(draft.now + timings.stop_grace + timings.stop_margin);
  qlora::v1::WorkerCommand command;
  auto& stop = *command.mutable_stop();
  stop.set_job_id(attempt.job_id());
  stop.set_attempt(attempt.attempt());
  stop.set_save(save);
  stop.mutable_grace()->set_seconds(absl::ToInt64Seconds(timings.stop_grace));
  stop.mutable_grace()->set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(timings.stop_grace % absl::Seconds(1))));
  for (const AttemptPart& part : attempt.parts()) {
    if (!PartIsOver(part)) draft.Send(part.node(), command);
  }
}

void FinishIfOver(Draft& draft, const AttemptKey& key) {
  const AttemptRecord* found = draft.attempts.Find(key);
  if (found == nullptr || IsTerminal(found->state()) ||
      !std::all_of(found->parts().begin(), found->parts().end(), PartIsOver)) {
    return;
  }
  AttemptRecord& attempt = *draft.attempts.Mutable(key);
  Job& job = draft.ChangeJob(key.first);
  attempt.set_state(EndState(attempt, job));
  attempt.clear_deadline();
  attempt.clear_staged();
  if (attempt.state() == ATTEMPT_STATE_CANCELLED) {
    FinishJob(draft, job, JobState::JOB_STATE_CANCELLED,
              qlora::v1::FAILURE_CLASS_UNSPECIFIED, job.job().reason());
    if (job.record.deleting()) RemoveJob(draft, key.first);
    return;
  }
  if (attempt.state() == ATTEMPT_STATE_SUCCEEDED) {
    return FinishJob(draft, job, JobState::JOB_STATE_SUCCEEDED,
                     qlora::v1::FAILURE_CLASS_UNSPECIFIED, "");
  }
  NoteFailure(attempt, qlora::v1::FAILURE_CLASS_INTERNAL,
              "training ended, but its final checkpoint was not committed");
  DecideAfterFailure(draft, job, attempt);
}

void OnStaged(Draft& draft, const AttemptKey& key,
              const qlora::v1::RankStaged& staged) {
  AttemptRecord& attempt = *draft.attempts.Mutable(key);
  const int64_t head = draft.jobs.Find(key.first)->job().head_step();
  // At the head itself only a resumed run that had nothing left to do.
  if (staged.step() < head || (staged.step() == head && !staged.final())) {
    return;
  }
  std::set<int32_t> ranks;
  std::set<std::string> states;
  const qlora::v1::RankStaged* first = nullptr;
  absl::Time first_staged = draft.now;
  StagedRank& mine = *attempt.add_staged();
  *mine.mutable_staged() = staged;
  *mine.mutable_time() = ToProto(draft.now);
  for (const StagedRank& rank : attempt.staged()) {
    if (rank.staged().step() != staged.step()) continue;
    ranks.insert(rank.staged().rank());
    states.insert(rank.staged().state_sha256());
    first_staged = std::min(first_staged, FromProto(rank.time()));
    if (rank.staged().rank() == 0) first = &rank.staged();
  }
  if (states.size() > 1) {
    NoteFailure(attempt, qlora::v1::FAILURE_CLASS_INTERNAL,
                absl::StrCat("the ranks' training state differs at step ",
                             staged.step()));
    draft.Tell(key.first, "RanksDiverged", attempt.message(), key.second);
    if (attempt.state() != ATTEMPT_STATE_DRAINING) {
      StopParts(draft, attempt, /*save=*/false);
    }
    return;
  }
  if (first == nullptr ||
      ranks.size() != static_cast<size_t>(attempt.ranks_size())) {
    return;
  }
  CommitCheckpoint(draft, attempt, *first, first_staged);
  DropStaged(attempt, staged.step());
}

void FinishJob(Draft& draft, Job& job, JobState state,
               FailureClass failure_class, std::string reason) {
  qlora::v1::Job& view = job.mutable_job();
  view.set_state(state);
  view.set_failure_class(failure_class);
  view.set_reason(reason);
  view.clear_backoff_until();
  *view.mutable_finish_time() = ToProto(draft.now);
  const std::string outcome = ShortName(state);
  draft.Tell(view.job_id(),
             state == JobState::JOB_STATE_SUCCEEDED   ? "Succeeded"
             : state == JobState::JOB_STATE_CANCELLED ? "Cancelled"
                                                      : "Failed",
             view.reason(), view.attempt());
  draft.Emit(JobFinished{view.job_id(), outcome,
                         failure_class == qlora::v1::FAILURE_CLASS_UNSPECIFIED
                             ? ""
                             : ShortName(failure_class),
                         view.has_start_time()
                             ? draft.now - FromProto(view.start_time())
                             : absl::ZeroDuration()});
}

void RemoveJob(Draft& draft, const std::string& job_id) {
  std::vector<CheckpointKey> checkpoints;
  draft.checkpoints.ForEach([&](const CheckpointKey& key, const auto&) {
    if (key.first == job_id) checkpoints.push_back(key);
  });
  for (const auto& key : checkpoints) draft.checkpoints.Erase(key);
  draft.jobs.Erase(job_id);
  draft.Emit(JobChanged{job_id});
  draft.Emit(JobRemoved{job_id});
}

}  // namespace qlora::server
