#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/stream.h"
#include "client/verbs.h"

namespace qlora::client {

absl::Status Logs(Session& session, const LogsOptions& options) {
  v1::StreamLogsRequest request;
  request.set_job(options.job);
  request.set_project(session.project);
  request.set_follow(options.follow);
  request.set_all_ranks(options.rank < 0);
  request.set_rank(options.rank);
  request.set_tail(options.tail);
  grpc::ClientContext context;
  const auto reader = session.connection().jobs().StreamLogs(&context, request);
  const auto print = [&](const v1::LogLine& line) -> absl::Status {
    if (session.output.format != OutputFormat::kTable) {
      return PrintRecord(session.output, line);
    }
    *session.output.out << FormatLogLine(line, options.rank < 0) << std::flush;
    return absl::OkStatus();
  };
  return JobError(
      ReadStream<v1::LogLine>(session.connection(), context, *reader, print),
      absl::StrCat("cannot read the log of job ", options.job));
}

}  // namespace qlora::client
