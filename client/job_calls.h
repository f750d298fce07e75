// Calls that several verbs need.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/session.h"

namespace qlora::client {

// The job of that id, unique prefix, name or "@last"; NotFound with a hint.
absl::StatusOr<v1::Job> FetchJob(Session& session, const std::string& job);

// The logged points, thinned to max_points (0: all).
absl::StatusOr<std::vector<v1::MetricPoint>> FetchMetrics(
    Session& session, const std::string& job, int max_points);

// A job's events until now.
absl::StatusOr<std::vector<v1::JobEvent>> FetchEvents(Session& session,
                                                      const std::string& job);

absl::StatusOr<v1::ListCheckpointsResponse> FetchCheckpoints(
    Session& session, const std::string& job);

// Waits until the coordinator answers for the job again, or `end`; says on
// standard error that it is away, and that it is back. NotFound if the job is
// gone by then.
absl::Status AwaitCoordinator(Session& session, const std::string& job_id,
                              absl::Time end);

// Says on standard error that a job is not followed any longer, why, and what
// to type to come back to it.
void NoteDetached(const std::string& job_id, const std::string& why);

// Adds a hint to an error about one of the paths that is under none of the
// model roots, where this machine's daemons could be started with it.
absl::Status WithRootHint(Session& session, absl::Status status,
                          const std::vector<std::string>& paths);

// Adds what could not be done, and a hint for a job that does not exist.
absl::Status JobError(absl::Status status, const std::string& what);

}  // namespace qlora::client
