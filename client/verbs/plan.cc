#include "client/job_calls.h"
#include "client/job_input.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status Plan(Session& session, const std::string& file,
                  const std::vector<std::string>& set) {
  ASSIGN_OR_RETURN(const JobInput job, ReadJob(file, set, /*name=*/""));
  ProgressLine progress(session.output.terminal.err);
  v1::PlanJobRequest request;
  request.set_job_file(job.yaml);
  ASSIGN_OR_RETURN(const std::vector<v1::UploadedInput> inputs,
                   UploadInputs(session.connection(), job, progress));
  request.mutable_inputs()->Assign(inputs.begin(), inputs.end());
  progress.Show("planning on a worker");
  const absl::StatusOr<v1::PlanJobResponse> plan = session.connection().Call(
      session.connection().jobs(), &v1::JobService::Stub::PlanJob, request,
      kTaskDeadline);
  progress.Clear();
  if (!plan.ok()) {
    return WithWhat(WithRemedy(session, plan.status(), ServerPaths(job.spec)),
                    "cannot plan this job");
  }
  switch (session.output.format) {
    case OutputFormat::kJson:
    case OutputFormat::kJsonl: {
      ASSIGN_OR_RETURN(
          const std::string text,
          ToJson(*plan, session.output.format == OutputFormat::kJsonl));
      *session.output.out << text;
      break;
    }
    case OutputFormat::kYaml: {
      ASSIGN_OR_RETURN(const std::string text, ToYaml(*plan));
      *session.output.out << text;
      break;
    }
    default:
      *session.output.out << FormatPlan(*plan);
  }
  return absl::OkStatus();
}

}  // namespace qlora::client
