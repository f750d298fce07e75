#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/stream.h"
#include "client/verbs.h"

namespace qlora::client {

absl::StatusOr<int> Events(Session& session, const EventsOptions& options) {
  // Another job may have the name by the time that a stream is opened again.
  ASSIGN_OR_RETURN(const v1::Job job, FetchJob(session, options.job));
  v1::StreamEventsRequest request;
  request.set_job(job.job_id());
  request.set_project(session.project);
  request.set_follow(options.follow);
  const auto print = [&](const v1::JobEvent& event) -> absl::Status {
    if (IsForPrograms(session.output.format)) {
      return PrintRecord(session.output, event);
    }
    *session.output.out << FormatEvent(event) << std::flush;
    return absl::OkStatus();
  };
  absl::StatusOr<int> code =
      StreamRecords<v1::StreamEventsRequest, v1::JobEvent>(
          session, request, absl::Now() + options.timeout,
          &v1::JobService::Stub::StreamEvents, print);
  if (code.ok()) return code;
  return JobError(code.status(),
                  absl::StrCat("cannot read the events of job ", options.job));
}

}  // namespace qlora::client
