// What the texts of a job's record say. Pure.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "server/core/state.h"

namespace qlora::server {

// Enters what of the memory an adapter_config.json decides: lora.rank, where
// the job file leaves it to lora.init_adapter. InvalidArgument if the text is
// wrong.
absl::Status TakeFromAdapter(const std::string& adapter_config, JobSpec& spec);

// InvalidArgument if this version cannot read the record's job file or model.
absl::StatusOr<std::shared_ptr<const JobPlan>> MakePlan(
    const JobRecord& record);

}  // namespace qlora::server
