#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/stream.h"
#include "client/verbs.h"

namespace qlora::client {

absl::Status Events(Session& session, const EventsOptions& options) {
  v1::StreamEventsRequest request;
  request.set_job(options.job);
  request.set_project(session.project);
  request.set_follow(options.follow);
  grpc::ClientContext context;
  const auto reader =
      session.connection().jobs().StreamEvents(&context, request);
  const auto print = [&](const v1::JobEvent& event) -> absl::Status {
    if (session.output.format != OutputFormat::kTable) {
      return PrintRecord(session.output, event);
    }
    *session.output.out << FormatEvent(event) << std::flush;
    return absl::OkStatus();
  };
  return JobError(
      ReadStream<v1::JobEvent>(session.connection(), context, *reader, print),
      absl::StrCat("cannot read the events of job ", options.job));
}

}  // namespace qlora::client
