// The one place where LibTorch's exceptions become Status.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace qlora::trainer {

// Runs f without autograd bookkeeping. ResourceExhausted if memory ran out,
// Internal for any other exception.
absl::Status GuardTorch(absl::FunctionRef<absl::Status()> f);

}  // namespace qlora::trainer
