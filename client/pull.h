// Bringing a finished job's output into a directory.
#pragma once

#include "absl/status/status.h"
#include "client/session.h"
#include "client/verbs.h"

namespace qlora::client {

// FailedPrecondition if the job has no output yet.
absl::Status PullOutput(Session& session, const v1::Job& job,
                        const PullOptions& options);

}  // namespace qlora::client
