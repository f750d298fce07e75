// Inner parts of job.h: ending attempts, and what follows for the job. Pure.
#pragma once

#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "server/core/state.h"

namespace qlora::server {

// Null if there is none.
AttemptPart* FindPart(AttemptRecord& attempt, std::string_view node);
const AttemptPart* FindPart(const AttemptRecord& attempt,
                            std::string_view node);
bool PartIsOver(const AttemptPart& part);

// The attempt's ranks on the node may still use their devices: until it is
// over, and after that until the node has said that they are gone.
bool HoldsDevices(const AttemptRecord& attempt, const std::string& node);

// Remembers why the attempt fails: the first cause, unless a later one is more
// definite (a full disk beats a lost peer) or explains it (a peer is lost
// because its node was drained).
void NoteFailure(AttemptRecord& attempt, qlora::v1::FailureClass failure_class,
                 std::string_view message);

// By its deadline the ranks of an attempt that were told to end must be gone;
// else their node is quarantined.
void AwaitEnd(const Draft& draft, AttemptRecord& attempt);

// Tells every part that still lives to stop, and waits for that (DRAINING).
void StopParts(Draft& draft, AttemptRecord& attempt, bool save);

// Why a job is STARTING while all is well.
inline constexpr char kBeingPrepared[] = "the ranks are being prepared";

// The node cannot be told anything now.
bool IsAway(const Draft& draft, const std::string& node);

// If every part is over, ends the attempt and decides about the job. One that
// is cancelled waits for no node that is away: the ranks there cannot make
// anything count once the attempt is over, and end when their node returns.
void FinishIfOver(Draft& draft, const AttemptKey& key);

// Takes a rank's share of a checkpoint; commits when all ranks have the same.
void OnStaged(Draft& draft, const AttemptKey& key,
              const qlora::v1::RankStaged& staged);

// "14:03:05 UTC".
std::string ClockTime(absl::Time time);

// Step of the checkpoint that the job's next attempt goes on from: its newest
// COMMITTED one, or 0. Its head is that one, unless it was found CORRUPT.
int64_t ResumeStep(const Draft& draft, const std::string& job_id);

// Enters a terminal state. reason is a copy: it may be the job's present one.
void FinishJob(Draft& draft, Job& job, qlora::v1::JobState state,
               qlora::v1::FailureClass failure_class, std::string reason);

// The node has no ranks of that attempt any more.
void OnRanksGone(Draft& draft, const AttemptKey& key, const std::string& node);

// Forgets the job, its checkpoints and its attempts. An attempt of which a node
// was given up stays until OnRanksGone: should the node come back with it, it
// is told to end it.
void RemoveJob(Draft& draft, const std::string& job_id);

}  // namespace qlora::server
