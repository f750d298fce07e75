#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/stream.h"
#include "client/verbs.h"
#include "common/base/plural.h"
#include "common/spec/job_spec.h"

namespace qlora::client {

namespace {

absl::Status CheckRank(const v1::Job& job, int rank) {
  const int ranks = ParseJobFile(job.resolved_job_file()).spec.world_size();
  if (rank < ranks) return absl::OkStatus();
  return WithWhat(
      absl::OutOfRangeError(absl::StrCat(
          "it has ", Plural(ranks, "rank"), ": 0",
          ranks > 1 ? absl::StrCat(ranks > 2 ? " to " : " and ", ranks - 1)
                    : "")),
      absl::StrCat("job ", job.job_id(), " has no rank ", rank));
}

}  // namespace

absl::StatusOr<int> Logs(Session& session, const LogsOptions& options) {
  // Another job may have the name by the time that a stream is opened again.
  ASSIGN_OR_RETURN(const v1::Job job, FetchJob(session, options.job));
  RETURN_IF_ERROR(CheckRank(job, options.rank));
  v1::StreamLogsRequest request;
  request.set_job(job.job_id());
  request.set_project(session.project);
  request.set_follow(options.follow);
  request.set_all_ranks(options.rank < 0);
  request.set_rank(options.rank);
  request.set_tail(options.tail);
  const auto print = [&](const v1::LogLine& line) -> absl::Status {
    if (IsForPrograms(session.output.format)) {
      return PrintRecord(session.output, line);
    }
    *session.output.out << FormatLogLine(line, options.rank < 0) << std::flush;
    return absl::OkStatus();
  };
  absl::StatusOr<int> code = StreamRecords<v1::StreamLogsRequest, v1::LogLine>(
      session, request, absl::Now() + options.timeout,
      &v1::JobService::Stub::StreamLogs, print);
  if (code.ok()) return code;
  return JobError(code.status(),
                  absl::StrCat("cannot read the log of job ", options.job));
}

}  // namespace qlora::client
