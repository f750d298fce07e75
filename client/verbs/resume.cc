#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

absl::Status ResumeOne(Session& session, const std::string& name) {
  // Resolved once: with a retried call "@last" could mean another job.
  ASSIGN_OR_RETURN(const v1::Job job, FetchJob(session, name));
  v1::ResumeJobRequest request;
  request.set_request_id(NewRequestId());
  request.set_job(job.job_id());
  request.set_project(session.project);
  const absl::StatusOr<v1::Job> resumed = session.connection().Call(
      session.connection().jobs(), &v1::JobService::Stub::ResumeJob, request);
  if (!resumed.ok()) {
    return JobError(resumed.status(), absl::StrCat("cannot resume job ", name));
  }
  return PrintChanged(session.output, *resumed, StateName(resumed->state()));
}

}  // namespace

int Resume(Session& session, const std::vector<std::string>& jobs) {
  return ForEachJob(
      jobs, [&](const std::string& job) { return ResumeOne(session, job); });
}

}  // namespace qlora::client
