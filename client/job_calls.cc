#include "client/job_calls.h"

#include "absl/strings/str_cat.h"
#include "client/errors.h"

namespace qlora::client {

absl::Status JobError(absl::Status status, const std::string& what) {
  if (absl::IsNotFound(status) || absl::IsAborted(status)) {
    status = WithHint(std::move(status), "qloractl list");
  }
  return WithWhat(std::move(status), what);
}

absl::StatusOr<v1::Job> FetchJob(Session& session, const std::string& job) {
  v1::GetJobRequest request;
  request.set_job(job);
  request.set_project(session.project);
  absl::StatusOr<v1::Job> found = session.connection().Call(
      session.connection().jobs(), &v1::JobService::Stub::GetJob, request);
  if (found.ok()) return found;
  return JobError(found.status(), absl::StrCat("cannot get job ", job));
}

absl::StatusOr<std::vector<v1::MetricPoint>> FetchMetrics(
    Session& session, const std::string& job, int max_points) {
  v1::QueryMetricsRequest request;
  request.set_job(job);
  request.set_project(session.project);
  request.set_max_points(max_points);
  absl::StatusOr<v1::QueryMetricsResponse> response =
      session.connection().Call(session.connection().jobs(),
                                &v1::JobService::Stub::QueryMetrics, request);
  if (!response.ok()) {
    return JobError(response.status(),
                    absl::StrCat("cannot get the metrics of job ", job));
  }
  return std::vector<v1::MetricPoint>(response->points().begin(),
                                      response->points().end());
}

absl::StatusOr<std::vector<v1::JobEvent>> FetchEvents(Session& session,
                                                      const std::string& job) {
  v1::StreamEventsRequest request;
  request.set_job(job);
  request.set_project(session.project);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallDeadline));
  const auto reader =
      session.connection().jobs().StreamEvents(&context, request);
  std::vector<v1::JobEvent> events;
  v1::JobEvent event;
  while (reader->Read(&event)) events.push_back(event);
  const absl::Status status = session.connection().ToStatus(reader->Finish());
  if (!status.ok()) {
    return JobError(status, absl::StrCat("cannot get the events of job ", job));
  }
  return events;
}

absl::StatusOr<v1::ListCheckpointsResponse> FetchCheckpoints(
    Session& session, const std::string& job) {
  v1::ListCheckpointsRequest request;
  request.set_job(job);
  request.set_project(session.project);
  absl::StatusOr<v1::ListCheckpointsResponse> response =
      session.connection().Call(session.connection().checkpoints(),
                                &v1::CheckpointService::Stub::ListCheckpoints,
                                request);
  if (response.ok()) return response;
  return JobError(response.status(),
                  absl::StrCat("cannot list the checkpoints of job ", job));
}

}  // namespace qlora::client
