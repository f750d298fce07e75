#include "server/core/attempt.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/format.h"
#include "common/base/plural.h"

namespace qlora::server {

using qlora::v1::FailureClass;
using qlora::v1::JobState;

namespace {

// Attempts without a newer checkpoint after which a person must look: those
// that failed on their own, and those whose node went.
constexpr int kMaxWithoutProgress = 3;
constexpr int kMaxDeparturesWithoutProgress = 10;
// Restarts after a defect of this software.
constexpr int kMaxInternalRestarts = 2;
// After these, the micro-batch is not what takes the memory.
constexpr int kMaxHalvings = 3;

// The cause is known for certain, not a consequence of another rank's end.
bool IsDefinite(FailureClass failure_class) {
  return failure_class == qlora::v1::FAILURE_CLASS_USER ||
         failure_class == qlora::v1::FAILURE_CLASS_NUMERICAL ||
         failure_class == qlora::v1::FAILURE_CLASS_OOM ||
         failure_class == qlora::v1::FAILURE_CLASS_DISK;
}

// The node was told to go: what its peers report of that is a consequence.
bool IsDeparture(FailureClass failure_class) {
  return failure_class == qlora::v1::FAILURE_CLASS_DRAINED ||
         failure_class == qlora::v1::FAILURE_CLASS_PREEMPTED;
}

std::string LogsHint(const std::string& job_id) {
  return absl::StrCat("qloractl logs ", job_id);
}

// Of these the reason tells the end only: a signal, a peer that is gone.
bool LogsTellMore(FailureClass failure_class) {
  return failure_class == qlora::v1::FAILURE_CLASS_INFRA ||
         failure_class == qlora::v1::FAILURE_CLASS_INTERNAL;
}

// What a person can do about a job that is held: a command for a shell, and as
// a shell's comment when to type it.
std::string HoldHint(const Draft& draft, const Job& job,
                     FailureClass failure_class) {
  const std::string& id = job.job().job_id();
  const int64_t step = ResumeStep(draft, id);
  const std::string resume = absl::StrCat("qloractl resume ", id);
  if (step == 0 && job.job().head_step() > 0) {
    return absl::StrCat(resume, "  # starts from the beginning");
  }
  switch (failure_class) {
    case qlora::v1::FAILURE_CLASS_DISK:
      return absl::StrCat(resume,
                          "  # after making space where the reason says");
    case qlora::v1::FAILURE_CLASS_NUMERICAL:
      if (step > 0) {
        return absl::StrCat(resume, "  # tries again from step ", step,
                            "; else submit with a lower train.learning_rate");
      }
      return absl::StrCat(
          "qloractl submit -f job.yaml --set "
          "train.learning_rate=",
          job.plan->spec.train.learning_rate / 10,
          "  # resumed, this job would repeat the same steps");
    case qlora::v1::FAILURE_CLASS_OOM:
      return absl::StrCat(resume,
                          "  # after giving the node more memory; else submit "
                          "with a shorter data.max_seq_len or more devices");
    default:
      return absl::StrCat(resume, "  # after mending what the reason says; ",
                          LogsHint(id), " shows what came before");
  }
}

void Hold(Draft& draft, Job& job, FailureClass failure_class,
          std::string_view reason) {
  job.mutable_job().set_state(JobState::JOB_STATE_HELD);
  job.mutable_job().set_failure_class(failure_class);
  job.mutable_job().set_reason(std::string(reason));
  job.mutable_job().set_hint(HoldHint(draft, job, failure_class));
  draft.Tell(job.job().job_id(), "Held", reason, job.job().attempt());
}

absl::Duration BackoffDelay(const Draft& draft, const JobRecord& record) {
  const Timings& timings = draft.state.timings;
  const int failures = std::max(record.failures_without_progress(),
                                record.departures_without_progress());
  const absl::Duration full =
      std::min(timings.backoff_max,
               timings.backoff * std::exp2(std::max(0, failures - 1)));
  return full * (0.5 + 0.5 * draft.jitter);
}

// After a delay, elsewhere if there is another place.
void StartAgain(Draft& draft, Job& job, const AttemptRecord& attempt) {
  qlora::v1::Job& view = job.mutable_job();
  const absl::Duration delay = BackoffDelay(draft, job.record);
  view.set_state(JobState::JOB_STATE_BACKOFF);
  *view.mutable_backoff_until() = ToProto(draft.now + delay);
  view.set_reason(absl::StrCat("starts again from step ",
                               ResumeStep(draft, view.job_id()), ": ",
                               attempt.message()));
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

// The same, as one of the restarts that the job file allows.
void Retry(Draft& draft, Job& job, const AttemptRecord& attempt) {
  job.mutable_job().set_restarts(job.job().restarts() + 1);
  StartAgain(draft, job, attempt);
}

int RestartLimit(const Job& job, FailureClass failure_class) {
  const int limit = job.plan->spec.restart.max;
  return failure_class == qlora::v1::FAILURE_CLASS_INTERNAL
             ? std::min(limit, kMaxInternalRestarts)
             : limit;
}

// True if it has ended the job.
bool FailAtRestartLimit(Draft& draft, Job& job, const AttemptRecord& attempt) {
  const FailureClass failure_class = attempt.failure_class();
  const int restarts =
      job.job().restarts() - job.record.restarts_before_resume();
  if (restarts < RestartLimit(job, failure_class)) return false;
  FinishJob(draft, job, JobState::JOB_STATE_FAILED, failure_class,
            absl::StrCat("after ", Plural(restarts, "restart"), ": ",
                         attempt.message()));
  return true;
}

// OOM: again with half of what a forward holds, elsewhere if there is another
// place, which is what helps a job that its node has no room for. The tries are
// few, so that none counts as one without progress; where the ranks say that
// there is nothing less, none is made.
void HalveOrHold(Draft& draft, Job& job, const AttemptRecord& attempt) {
  qlora::v1::Job& view = job.mutable_job();
  if (std::any_of(attempt.parts().begin(), attempt.parts().end(),
                  [](const auto& p) { return p.least_memory(); })) {
    return Hold(draft, job, attempt.failure_class(), attempt.message());
  }
  const int halvings = view.micro_batch_halvings() + 1;
  if (halvings > kMaxHalvings) {
    return Hold(draft, job, attempt.failure_class(),
                absl::StrCat("out of memory after ", kMaxHalvings,
                             " attempts to hold less: ", attempt.message()));
  }
  if (FailAtRestartLimit(draft, job, attempt)) return;
  view.set_micro_batch_halvings(halvings);
  draft.Tell(view.job_id(), "MicroBatchHalved",
             absl::StrCat(halvings, " of at most ", kMaxHalvings,
                          " times: half the rows per forward and twice as "
                          "many accumulated or, with one row, more of its "
                          "layers recomputed; the results stay the same"),
             attempt.attempt());
  Retry(draft, job, attempt);
}

// INFRA, INTERNAL: again, within bounds.
void RetryOrGiveUp(Draft& draft, Job& job, const AttemptRecord& attempt) {
  const FailureClass failure_class = attempt.failure_class();
  if (job.record.failures_without_progress() >= kMaxWithoutProgress) {
    return Hold(draft, job, failure_class,
                absl::StrCat(kMaxWithoutProgress,
                             " attempts ended without a newer checkpoint; the "
                             "last: ",
                             attempt.message()));
  }
  if (FailAtRestartLimit(draft, job, attempt)) return;
  Retry(draft, job, attempt);
}

// A node went, with its agent or its machine: that says nothing about the job
// and costs none of its restarts. A job that takes down whatever it runs on
// must end all the same.
void StartElsewhere(Draft& draft, Job& job, const AttemptRecord& attempt) {
  JobRecord& record = job.record;
  const int departures = record.departures_without_progress() + 1;
  record.set_departures_without_progress(departures);
  if (departures >= kMaxDeparturesWithoutProgress) {
    return Hold(draft, job, attempt.failure_class(),
                absl::StrCat(departures,
                             " attempts lost a node before a newer checkpoint; "
                             "the last: ",
                             attempt.message()));
  }
  StartAgain(draft, job, attempt);
}

// NUMERICAL: one replay tells a passing fault of a machine from one of the job.
// Without a checkpoint it would be the same computation from the same start.
void ReplayOrHold(Draft& draft, Job& job, const AttemptRecord& attempt) {
  const int64_t step = ResumeStep(draft, job.job().job_id());
  if (step == 0) {
    return Hold(draft, job, attempt.failure_class(),
                absl::StrCat(attempt.message(),
                             " (no checkpoint was made before that step)"));
  }
  if (job.record.numerical_replayed()) {
    return Hold(
        draft, job, attempt.failure_class(),
        absl::StrCat("again after a replay from the checkpoint of step ", step,
                     ", which is kept: ", attempt.message()));
  }
  job.record.set_numerical_replayed(true);
  Retry(draft, job, attempt);
}

// DISK: whose it is stands before the path that is full.
void HoldForSpace(Draft& draft, Job& job, const AttemptRecord& attempt) {
  std::string where;
  for (const AttemptPart& part : attempt.parts()) {
    if (part.failure_class() != qlora::v1::FAILURE_CLASS_DISK) continue;
    where = absl::StrCat(part.node(), ": ");
    break;
  }
  Hold(draft, job, attempt.failure_class(),
       absl::StrCat(where, attempt.message()));
}

// Saved and left on request: goes on elsewhere or later, uncounted. Without a
// pause: a node that drains is none to be placed on.
void Requeue(Draft& draft, Job& job, const AttemptRecord& attempt) {
  qlora::v1::Job& view = job.mutable_job();
  view.set_state(JobState::JOB_STATE_QUEUED);
  view.clear_ranks();
  *job.record.mutable_queued_time() = ToProto(draft.now);
  draft.Tell(view.job_id(), "Drained", attempt.message(), attempt.attempt());
  draft.Emit(JobRestarted{ShortName(attempt.failure_class())});
}

// Notes why the attempt failed, if it did, where nothing overwrites it but the
// next failure.
void KeepEvidence(const Draft& draft, Job& job, const AttemptRecord& attempt) {
  switch (attempt.failure_class()) {
    case qlora::v1::FAILURE_CLASS_UNSPECIFIED:
    case qlora::v1::FAILURE_CLASS_DRAINED:
    case qlora::v1::FAILURE_CLASS_PREEMPTED:
      return;
    default:
      break;
  }
  auto& failure = *job.mutable_job().mutable_last_failure();
  failure.set_attempt(attempt.attempt());
  failure.set_failure_class(attempt.failure_class());
  failure.set_message(attempt.message());
  *failure.mutable_time() = ToProto(draft.now);
  failure.set_head_step(job.job().head_step());
}

// Sets aside the checkpoint that the attempt could not resume from. True if no
// other is left.
bool SetAsideUnusable(Draft& draft, const Job& job,
                      const AttemptRecord& attempt) {
  const std::string& id = job.job().job_id();
  const bool unusable =
      std::any_of(attempt.parts().begin(), attempt.parts().end(),
                  [](const auto& p) { return p.checkpoint_unusable(); });
  auto* checkpoint =
      unusable ? draft.checkpoints.Mutable({id, attempt.resume_step()})
               : nullptr;
  if (checkpoint == nullptr) return false;
  checkpoint->set_state(qlora::v1::CHECKPOINT_STATE_CORRUPT);
  const int64_t before = ResumeStep(draft, id);
  draft.Tell(
      id, "CheckpointCorrupt",
      absl::StrCat("step ", attempt.resume_step(), " cannot be resumed from, ",
                   before > 0 ? absl::StrCat("step ", before, " is next")
                              : "and there is no other",
                   ": ", attempt.message()),
      attempt.attempt());
  return before == 0;
}

void DecideAfterFailure(Draft& draft, Job& job, const AttemptRecord& attempt) {
  const bool nothing_left = SetAsideUnusable(draft, job, attempt);
  const FailureClass failure_class = attempt.failure_class();
  if (IsDeparture(failure_class)) return Requeue(draft, job, attempt);
  job.mutable_job().set_failure_class(failure_class);
  if (failure_class == qlora::v1::FAILURE_CLASS_OOM) {
    return HalveOrHold(draft, job, attempt);
  }
  const bool departed =
      failure_class == qlora::v1::FAILURE_CLASS_INFRA &&
      std::any_of(attempt.parts().begin(), attempt.parts().end(),
                  [](const auto& part) { return part.departed(); });
  JobRecord& record = job.record;
  if (!departed) {
    record.set_failures_without_progress(record.failures_without_progress() +
                                         1);
  }
  if (nothing_left) {
    return Hold(
        draft, job, failure_class,
        absl::StrCat("no checkpoint is left that it could resume from: ",
                     attempt.message()));
  }
  if (departed) return StartElsewhere(draft, job, attempt);
  switch (failure_class) {
    case qlora::v1::FAILURE_CLASS_USER:
      return FinishJob(draft, job, JobState::JOB_STATE_FAILED, failure_class,
                       attempt.message());
    case qlora::v1::FAILURE_CLASS_DISK:
      return HoldForSpace(draft, job, attempt);
    case qlora::v1::FAILURE_CLASS_NUMERICAL:
      return ReplayOrHold(draft, job, attempt);
    default:
      return RetryOrGiveUp(draft, job, attempt);
  }
}

// Keeps the newest `keep` checkpoints, and none that was set aside before them;
// the files of others go with the next collection.
void ExpireCheckpoints(Draft& draft, const Job& job) {
  std::vector<CheckpointKey> keys, corrupt;
  draft.checkpoints.ForEach([&](const CheckpointKey& key, const auto& c) {
    if (key.first != job.job().job_id()) return;
    (c.state() == qlora::v1::CHECKPOINT_STATE_CORRUPT ? corrupt : keys)
        .push_back(key);
  });
  for (const CheckpointKey& key : corrupt) draft.checkpoints.Erase(key);
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
  job.record.set_departures_without_progress(0);
  job.record.set_numerical_replayed(false);
  if (first.final()) {
    *job.mutable_job().mutable_output() = first.output();
    attempt.set_final_committed(true);
  }
  ExpireCheckpoints(draft, job);
  draft.Tell(attempt.job_id(), "CheckpointCommitted",
             absl::StrCat("step ", first.step(), ", ", FormatBytes(bytes)),
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

// Where the rank's share of that step is kept: said again, it replaces what it
// said before.
StagedRank& StagedBy(AttemptRecord& attempt,
                     const qlora::v1::RankStaged& staged) {
  for (StagedRank& known : *attempt.mutable_staged()) {
    if (known.staged().rank() == staged.rank() &&
        known.staged().step() == staged.step()) {
      return known;
    }
  }
  return *attempt.add_staged();
}

// Tells of the newest checkpoint of which some ranks have said nothing. One
// that a cancel cut off is no loss.
void TellOfUncommitted(Draft& draft, const AttemptRecord& attempt) {
  if (attempt.state() == ATTEMPT_STATE_CANCELLED) return;
  int64_t newest = 0;
  for (const StagedRank& rank : attempt.staged()) {
    newest = std::max(newest, rank.staged().step());
  }
  if (newest <= ResumeStep(draft, attempt.job_id())) return;
  std::vector<std::string> silent;
  for (const auto& rank : attempt.ranks()) {
    if (std::none_of(attempt.staged().begin(), attempt.staged().end(),
                     [&](const StagedRank& share) {
                       return share.staged().step() == newest &&
                              share.staged().rank() == rank.rank();
                     })) {
      silent.push_back(absl::StrCat(rank.rank()));
    }
  }
  // None: their states differ, which has been told.
  if (silent.empty()) return;
  draft.Tell(attempt.job_id(), "CheckpointLost",
             absl::StrCat("step ", newest,
                          " was not committed: nothing came "
                          "of it from rank ",
                          absl::StrJoin(silent, ", ")),
             attempt.attempt());
}

// Gives up the parts on nodes that are away, and says so.
void FenceAbsent(Draft& draft, Job& job, AttemptRecord& attempt) {
  std::vector<std::string> away;
  for (AttemptPart& part : *attempt.mutable_parts()) {
    if (PartIsOver(part)) continue;
    part.set_lost(true);
    part.set_departed(true);
    const Node* node = draft.nodes.Find(part.node());
    away.push_back(node == nullptr
                       ? part.node()
                       : absl::StrCat(part.node(), " (silent since ",
                                      ClockTime(node->last_heartbeat), ")"));
  }
  if (away.empty()) return;
  const std::string text = absl::StrCat(
      "unreachable: ", absl::StrJoin(away, ", "),
      "; what its ranks still do does not count, and they end when it returns");
  draft.Tell(attempt.job_id(), "RanksFenced", text, attempt.attempt());
  job.mutable_job().set_reason(absl::StrCat(job.job().reason(), "; ", text));
}

bool AllEnded(const AttemptRecord& attempt) {
  return std::all_of(attempt.parts().begin(), attempt.parts().end(),
                     [](const AttemptPart& part) { return part.ended(); });
}

// Erases the record if the job is gone and no node can come back with ranks.
void ForgetIfDeleted(Draft& draft, const AttemptKey& key) {
  if (draft.jobs.Find(key.first) == nullptr &&
      AllEnded(*draft.attempts.Find(key))) {
    draft.attempts.Erase(key);
  }
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

const AttemptPart* FindPart(const AttemptRecord& attempt,
                            std::string_view node) {
  for (const AttemptPart& part : attempt.parts()) {
    if (part.node() == node) return &part;
  }
  return nullptr;
}

AttemptPart* FindPart(AttemptRecord& attempt, std::string_view node) {
  return const_cast<AttemptPart*>(FindPart(std::as_const(attempt), node));
}

bool PartIsOver(const AttemptPart& part) { return part.ended() || part.lost(); }

bool HoldsDevices(const AttemptRecord& attempt, const std::string& node) {
  if (!IsTerminal(attempt.state())) return true;
  const AttemptPart* part = FindPart(attempt, node);
  return part != nullptr && !part->ended();
}

bool IsAway(const Draft& draft, const std::string& node) {
  const Node* found = draft.nodes.Find(node);
  return found == nullptr || found->stream == 0;
}

std::string ClockTime(absl::Time time) {
  return absl::FormatTime("%H:%M:%S UTC", time, absl::UTCTimeZone());
}

void NoteFailure(AttemptRecord& attempt, FailureClass failure_class,
                 std::string_view message) {
  const FailureClass known = attempt.failure_class();
  const bool explained =
      (known == qlora::v1::FAILURE_CLASS_INFRA && IsDeparture(failure_class)) ||
      (!IsDefinite(known) && IsDefinite(failure_class));
  if (known != qlora::v1::FAILURE_CLASS_UNSPECIFIED && !explained) return;
  attempt.set_failure_class(failure_class);
  attempt.set_message(std::string(message));
}

void AwaitEnd(const Draft& draft, AttemptRecord& attempt) {
  const Timings& timings = draft.state.timings;
  *attempt.mutable_deadline() =
      ToProto(draft.now + timings.stop_grace + timings.stop_margin);
}

void StopParts(Draft& draft, AttemptRecord& attempt, bool save) {
  const Timings& timings = draft.state.timings;
  attempt.set_state(ATTEMPT_STATE_DRAINING);
  AwaitEnd(draft, attempt);
  qlora::v1::WorkerCommand command;
  auto& stop = *command.mutable_stop();
  stop.set_job_id(attempt.job_id());
  stop.set_attempt(attempt.attempt());
  stop.set_term(attempt.term());
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
  if (found == nullptr || IsTerminal(found->state())) return;
  const bool cancelling = draft.jobs.Find(key.first)->job().state() ==
                          JobState::JOB_STATE_CANCELLING;
  if (!std::all_of(found->parts().begin(), found->parts().end(),
                   [&](const AttemptPart& part) {
                     return PartIsOver(part) ||
                            (cancelling && IsAway(draft, part.node()));
                   })) {
    return;
  }
  AttemptRecord& attempt = *draft.attempts.Mutable(key);
  Job& job = draft.ChangeJob(key.first);
  FenceAbsent(draft, job, attempt);
  attempt.set_state(EndState(attempt, job));
  if (AllEnded(attempt)) attempt.clear_deadline();
  TellOfUncommitted(draft, attempt);
  attempt.clear_staged();
  if (attempt.state() == ATTEMPT_STATE_CANCELLED) {
    KeepEvidence(draft, job, attempt);
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
  KeepEvidence(draft, job, attempt);
  DecideAfterFailure(draft, job, attempt);
}

void OnStaged(Draft& draft, const AttemptKey& key,
              const qlora::v1::RankStaged& staged) {
  AttemptRecord& attempt = *draft.attempts.Mutable(key);
  const int64_t head = draft.jobs.Find(key.first)->job().head_step();
  // At the head itself only a resumed run that had nothing left to do, or one
  // that replaces a head which was set aside.
  if (staged.step() < head || (staged.step() == head && !staged.final() &&
                               ResumeStep(draft, key.first) == head)) {
    return;
  }
  if (staged.ByteSizeLong() > kMaxStagedBytes) {
    draft.Tell(key.first, "CheckpointLost",
               absl::StrCat("step ", staged.step(),
                            " was not committed: the names of its files take ",
                            staged.ByteSizeLong(), " bytes; at most ",
                            kMaxStagedBytes, " can be sent to workers"),
               key.second);
    return;
  }
  std::set<int32_t> ranks;
  std::set<std::string> states;
  const qlora::v1::RankStaged* first = nullptr;
  absl::Time first_staged = draft.now;
  StagedRank& mine = StagedBy(attempt, staged);
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

int64_t ResumeStep(const Draft& draft, const std::string& job_id) {
  int64_t step = 0;
  draft.checkpoints.ForEach([&](const CheckpointKey& key, const auto& c) {
    if (key.first == job_id &&
        c.state() == qlora::v1::CHECKPOINT_STATE_COMMITTED) {
      step = key.second;
    }
  });
  return step;
}

void FinishJob(Draft& draft, Job& job, JobState state,
               FailureClass failure_class, std::string reason) {
  qlora::v1::Job& view = job.mutable_job();
  view.set_state(state);
  view.set_failure_class(failure_class);
  view.set_reason(reason);
  view.set_hint(state == JobState::JOB_STATE_FAILED &&
                        LogsTellMore(failure_class)
                    ? LogsHint(view.job_id())
                    : "");
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

void OnRanksGone(Draft& draft, const AttemptKey& key, const std::string& node) {
  if (draft.attempts.Find(key) == nullptr) return;
  AttemptRecord& attempt = *draft.attempts.Mutable(key);
  AttemptPart* part = FindPart(attempt, node);
  if (part != nullptr) part->set_ended(true);
  ForgetIfDeleted(draft, key);
}

void RemoveJob(Draft& draft, const std::string& job_id) {
  std::vector<CheckpointKey> checkpoints;
  draft.checkpoints.ForEach([&](const CheckpointKey& key, const auto&) {
    if (key.first == job_id) checkpoints.push_back(key);
  });
  for (const auto& key : checkpoints) draft.checkpoints.Erase(key);
  draft.jobs.Erase(job_id);
  std::vector<AttemptKey> attempts;
  draft.attempts.ForEach([&](const AttemptKey& key, const auto&) {
    if (key.first == job_id) attempts.push_back(key);
  });
  for (const auto& key : attempts) ForgetIfDeleted(draft, key);
  draft.Emit(JobChanged{job_id});
  draft.Emit(JobRemoved{job_id});
}

}  // namespace qlora::server
