// Calls that several verbs need.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
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

// Adds what could not be done, and a hint for a job that does not exist.
absl::Status JobError(absl::Status status, const std::string& what);

}  // namespace qlora::client
