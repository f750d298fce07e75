// How a rank ends: the map from errors to failure classes and exit codes
// (docs/failure_model.md). Pure functions.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "qlora/v1/job.pb.h"

namespace qlora::trainer {

inline constexpr int kExitParentGone = 17;

struct Failure {
  v1::FailureClass failure_class;
  int exit_code;
};

// By the mark that MarkFailure put on the status, else by its code.
Failure ClassifyFailure(const absl::Status& status);

// The status with a class of its own, for what a code alone does not tell.
absl::Status MarkFailure(absl::Status status, v1::FailureClass failure_class);

// A loss or gradient norm that is not finite.
absl::Status NumericalError(std::string_view message);

// For writing files: no space means the disk, not memory, and a failed write or
// sync is its fault too.
absl::Status DiskError(const absl::Status& status);

}  // namespace qlora::trainer
