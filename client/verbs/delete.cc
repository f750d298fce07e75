#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

absl::Status DeleteOne(Session& session, const std::string& name) {
  // Resolved once: with a retried call "@last" would mean another job.
  ASSIGN_OR_RETURN(const v1::Job job, FetchJob(session, name));
  v1::DeleteJobRequest request;
  request.set_request_id(NewRequestId());
  request.set_job(job.job_id());
  request.set_project(session.project);
  const absl::Status deleted =
      session.connection()
          .Call(session.connection().jobs(), &v1::JobService::Stub::DeleteJob,
                request, kSubmitDeadline)
          .status();
  if (!deleted.ok()) {
    return JobError(deleted, absl::StrCat("cannot delete job ", name));
  }
  return PrintChanged(session.output, job, "deleted");
}

}  // namespace

int DeleteJobs(Session& session, const std::vector<std::string>& jobs) {
  return ForEachJob(
      jobs, [&](const std::string& job) { return DeleteOne(session, job); });
}

}  // namespace qlora::client
