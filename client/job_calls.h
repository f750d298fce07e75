// Calls that several verbs need.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/session.h"

namespace qlora::client {

// The job of that id, unique prefix, name or "@last"; NotFound with a hint.
absl::StatusOr<v1::Job> FetchJob(Session& session, const std::string& job);

// The logged points, thinned to max_points. 0: as many as one answer holds; a
// note on standard error says so where that is not all.
absl::StatusOr<v1::QueryMetricsResponse> FetchMetrics(Session& session,
                                                      const std::string& job,
                                                      int max_points);

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

// Adds a hint to the server's refusal of a job or a model: what lists the names
// that there are, or how this machine's daemons are started so that they may
// read one of the paths, else what explains the key.
absl::Status WithRemedy(Session& session, absl::Status status,
                        const std::vector<std::string>& paths);

// Lets `act` have one job after another. An error is printed and keeps none
// behind it from its turn, unless the coordinator does not answer. The exit
// code of the first error.
int ForEachJob(const std::vector<std::string>& jobs,
               const std::function<absl::Status(const std::string& job)>& act);

// Prints one of several jobs that a verb changed: its id and the words, or for
// programs the job.
absl::Status PrintChanged(const Output& output, const v1::Job& job,
                          const std::string& words);

// Adds what could not be done, and a hint for a job that does not exist.
absl::Status JobError(absl::Status status, const std::string& what);

}  // namespace qlora::client
