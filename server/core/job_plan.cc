#include "server/core/job_plan.h"

#include <nlohmann/json.hpp>

#include "common/base/status_macros.h"
#include "common/formats/json_fields.h"

namespace qlora::server {

absl::Status TakeFromAdapter(const std::string& adapter_config, JobSpec& spec) {
  constexpr char kName[] = "adapter_config.json";
  constexpr int64_t kMaxRank = 4096;
  ASSIGN_OR_RETURN(const nlohmann::json json,
                   ParseJsonObject(adapter_config, kName));
  absl::Status status;
  const int64_t rank = JsonFields(json, "adapter_config.json: ", status)
                           .Integer("r", 1, kMaxRank);
  if (status.ok() && spec.lora.from_adapter.contains("lora.rank")) {
    spec.lora.rank = static_cast<int>(rank);
  }
  return status;
}

absl::StatusOr<std::shared_ptr<const JobPlan>> MakePlan(
    const JobRecord& record) {
  ParsedJob parsed = ParseJobFile(record.job().resolved_job_file());
  if (!parsed.errors.empty()) {
    return SpecErrorsToStatus(parsed.errors, record.job().job_id());
  }
  JobPlan plan{std::move(parsed.spec), std::nullopt};
  if (!record.adapter_config().empty()) {
    RETURN_IF_ERROR(TakeFromAdapter(record.adapter_config(), plan.spec));
  }
  if (!record.model_config().empty()) {
    ASSIGN_OR_RETURN(plan.model, ParseModelConfig(record.model_config()));
  }
  return std::make_shared<const JobPlan>(std::move(plan));
}

}  // namespace qlora::server
