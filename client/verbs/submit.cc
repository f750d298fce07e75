#include <iostream>

#include "absl/strings/str_cat.h"
#include "client/follow.h"
#include "client/job_calls.h"
#include "client/job_input.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

absl::StatusOr<v1::Job> CreateJob(Session& session, const JobInput& input,
                                  bool dry_run) {
  ProgressLine progress(session.output.terminal.err);
  v1::CreateJobRequest request;
  request.set_request_id(NewRequestId());
  request.set_job_file(input.yaml);
  request.set_validate_only(dry_run);
  ASSIGN_OR_RETURN(const std::vector<v1::UploadedInput> inputs,
                   UploadInputs(session.connection(), input, progress));
  request.mutable_inputs()->Assign(inputs.begin(), inputs.end());
  absl::StatusOr<v1::Job> job = session.connection().Call(
      session.connection().jobs(), &v1::JobService::Stub::CreateJob, request,
      kSubmitDeadline);
  if (job.ok()) return job;
  return WithWhat(WithRemedy(session, job.status(), ServerPaths(input.spec)),
                  "the job was not accepted");
}

}  // namespace

absl::StatusOr<int> Submit(Session& session, const SubmitOptions& options) {
  ASSIGN_OR_RETURN(const JobInput input,
                   ReadJob(options.file, options.set, options.name));
  ASSIGN_OR_RETURN(const v1::Job job,
                   CreateJob(session, input, options.dry_run));
  const Output& output = session.output;
  if (options.dry_run) {
    if (output.format != OutputFormat::kTable) {
      RETURN_IF_ERROR(PrintOne(output, job, JobView(absl::Now())));
    } else {
      *output.out << "valid; nothing was queued\n" << job.resolved_job_file();
    }
    return kExitOk;
  }
  const std::string submitted =
      absl::StrCat("submitted ", job.job_id(),
                   job.name().empty() ? "" : " (" + job.name() + ")");
  if (options.follow && IsForPrograms(output.format)) {
    // They get the job once, as it ends.
    std::cerr << submitted << std::endl;
  } else if (output.format != OutputFormat::kTable) {
    RETURN_IF_ERROR(PrintOne(output, job, JobView(absl::Now())));
  } else {
    *output.out << submitted << std::endl;
  }
  if (options.follow) {
    return FollowJob(session, job, {.timeout = options.timeout});
  }
  if (output.format == OutputFormat::kTable && output.terminal.out) {
    *output.out << "next: qloractl wait " << job.job_id() << "\n";
  }
  return kExitOk;
}

}  // namespace qlora::client
