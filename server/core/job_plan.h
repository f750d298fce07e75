// What the texts of a job's record say. Pure.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "server/core/state.h"

namespace qlora::server {

// InvalidArgument if this version cannot read the record's job file or model.
absl::StatusOr<std::shared_ptr<const JobPlan>> MakePlan(
    const JobRecord& record);

}  // namespace qlora::server
