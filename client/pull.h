// Bringing a finished job's output into a directory.
#pragma once

#include "absl/status/status.h"
#include "client/session.h"
#include "client/verbs.h"

namespace qlora::client {

// FailedPrecondition if the job has no output yet.
absl::Status PullOutput(Session& session, const v1::Job& job,
                        const PullOptions& options);

// Downloads files of the artifact store likewise.
absl::Status PullFiles(
    Session& session,
    const google::protobuf::RepeatedPtrField<v1::ArtifactFile>& files,
    const PullOptions& options);

}  // namespace qlora::client
