#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/job_calls.h"
#include "client/pull.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

bool IsAdapter(const v1::Job& job) {
  return job.method() != "full" && job.output_size() > 0;
}

}  // namespace

absl::Status AdapterList(Session& session) {
  v1::ListJobsRequest request;
  request.set_project(session.project);
  request.add_states(v1::JOB_STATE_SUCCEEDED);
  v1::ListJobsResponse adapters;
  do {
    absl::StatusOr<v1::ListJobsResponse> page = session.connection().Call(
        session.connection().jobs(), &v1::JobService::Stub::ListJobs, request);
    if (!page.ok()) return WithWhat(page.status(), "cannot list the adapters");
    request.set_page_token(page->next_page_token());
    for (const v1::Job& job : page->jobs()) {
      if (IsAdapter(job)) *adapters.add_jobs() = job;
    }
  } while (!request.page_token().empty());
  return PrintList(session.output, adapters, adapters.jobs(),
                   AdapterView(absl::Now()));
}

absl::Status AdapterPull(Session& session, const PullOptions& options) {
  ASSIGN_OR_RETURN(const v1::Job job, FetchJob(session, options.job));
  if (job.method() == "full") {
    return WithHint(
        WithWhat(absl::FailedPreconditionError("its method is full"),
                 absl::StrCat("job ", options.job, " made no adapter")),
        absl::StrCat("qloractl model pull ", job.job_id(), " --to ",
                     options.to));
  }
  return PullOutput(session, job, options);
}

absl::Status AdapterVerify(Session& session, const std::string& job) {
  v1::VerifyAdapterRequest request;
  request.set_job(job);
  request.set_project(session.project);
  const absl::StatusOr<v1::VerifyAdapterResponse> verified =
      session.connection().Call(session.connection().jobs(),
                                &v1::JobService::Stub::VerifyAdapter, request,
                                kTaskDeadline);
  if (!verified.ok()) {
    return JobError(verified.status(),
                    absl::StrCat("cannot verify the adapter of job ", job));
  }
  if (IsForPrograms(session.output.format)) {
    ASSIGN_OR_RETURN(
        const std::string text,
        session.output.format == OutputFormat::kYaml
            ? ToYaml(*verified)
            : ToJson(*verified, session.output.format == OutputFormat::kJsonl));
    *session.output.out << text;
  } else {
    std::ostream& out = *session.output.out;
    out << absl::StrFormat("recorded loss  %.6f\nmeasured loss  %.6f\n",
                           verified->recorded_loss(),
                           verified->measured_loss());
    if (verified->base_loss() != 0) {
      out << absl::StrFormat("base loss      %.6f\n", verified->base_loss());
    }
    out << (verified->passed() ? "verified\n" : "NOT VERIFIED\n");
  }
  if (verified->passed()) return absl::OkStatus();
  return WithWhat(absl::DataLossError(verified->message()),
                  absl::StrCat("the adapter of job ", job,
                               " does not give what was recorded"));
}

}  // namespace qlora::client
