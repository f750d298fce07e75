#include "server/core/job_plan.h"

#include "common/base/status_macros.h"

namespace qlora::server {

absl::StatusOr<std::shared_ptr<const JobPlan>> MakePlan(
    const JobRecord& record) {
  ParsedJob parsed = ParseJobFile(record.job().resolved_job_file());
  if (!parsed.errors.empty()) {
    return SpecErrorsToStatus(parsed.errors, record.job().job_id());
  }
  JobPlan plan{std::move(parsed.spec), std::nullopt};
  if (!record.model_config().empty()) {
    ASSIGN_OR_RETURN(plan.model, ParseModelConfig(record.model_config()));
  }
  return std::make_shared<const JobPlan>(std::move(plan));
}

}  // namespace qlora::server
