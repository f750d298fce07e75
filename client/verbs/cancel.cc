#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/verbs.h"

namespace qlora::client {
namespace {

absl::Status CancelOne(Session& session, const std::string& job,
                       const std::string& reason) {
  v1::CancelJobRequest request;
  request.set_request_id(NewRequestId());
  request.set_job(job);
  request.set_project(session.project);
  request.set_reason(reason);
  const absl::StatusOr<v1::Job> cancelled = session.connection().Call(
      session.connection().jobs(), &v1::JobService::Stub::CancelJob, request);
  if (!cancelled.ok()) {
    return JobError(cancelled.status(),
                    absl::StrCat("cannot cancel job ", job));
  }
  std::string words = StateName(cancelled->state());
  // For whom it waits, or whom it did not wait for.
  if (!cancelled->reason().empty()) {
    absl::StrAppend(&words, ": ", IndentRest(cancelled->reason(), 2));
  }
  return PrintChanged(session.output, *cancelled, words);
}

}  // namespace

int Cancel(Session& session, const std::vector<std::string>& jobs,
           const std::string& reason) {
  return ForEachJob(jobs, [&](const std::string& job) {
    return CancelOne(session, job, reason);
  });
}

}  // namespace qlora::client
