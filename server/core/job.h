// The life of jobs and attempts.
//
//     +------------------ HELD <---------------+
//     | resumed                                | a person must look
//     |      +----------- BACKOFF <------------+
//     |      |                                 | retry
//     |      +---------------------------------+
//     v      v                                 | drained
//   QUEUED ----> STARTING ----> RUNNING -------+--> FAILED
//     |             |             |     \ final checkpoint committed
//     |             v             v      --> SUCCEEDED
//     +------> CANCELLING --> CANCELLED <-- HELD, BACKOFF
//
// Pure: see state.h. Functions that take an event of a node ignore it if the
// attempt is over, superseded or not that node's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/core/state.h"

namespace qlora::server {

// Puts a new job into the queue.
void QueueJob(Draft& draft, Job job);

// FailedPrecondition if it has SUCCEEDED or FAILED. One that is CANCELLED or
// CANCELLING stays as it is. The reason of one that was HELD stays in its own.
absl::Status CancelJob(Draft& draft, const std::string& job_id,
                       std::string_view reason);

// Queues a HELD job again, as JobService.ResumeJob says. FailedPrecondition in
// other states.
absl::Status ResumeJob(Draft& draft, const std::string& job_id);

// Hides the job, cancels it, and removes it when nothing of it runs.
void DeleteJob(Draft& draft, const std::string& job_id);

// Reserves the devices and tells the nodes to prepare. The job is QUEUED.
void StartAttempt(Draft& draft, const std::string& job_id,
                  const std::vector<qlora::v1::RankAssignment>& ranks);

// What a node reports of an attempt: prepared, running, staged, ended.
void OnAttemptEvent(Draft& draft, const std::string& node,
                    const qlora::v1::WorkerEvent& event);

// The node's ranks of that attempt are gone.
void LosePart(Draft& draft, const AttemptKey& key, const std::string& node,
              std::string_view why);

// Acts on deadlines that have passed and ends backoffs.
void CheckTimers(Draft& draft);

// Gives waits that a coordinator's absence used up their time again.
void ExtendDeadlines(Draft& draft);

// Moves leases and waits, for a clock that jumped. Nothing of it needs to be
// stored: a start renews them all.
void ShiftWaits(State& state, absl::Duration by);

}  // namespace qlora::server
