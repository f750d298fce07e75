// Looks into a model that is to be registered.
#pragma once

#include "absl/status/statusor.h"
#include "qlora/v1/model.pb.h"
#include "server/admission.h"
#include "server/store/artifact_store.h"

namespace qlora::server {

// Names of models and datasets: [a-z0-9][a-z0-9._-]{0,62}. InvalidArgument.
absl::Status CheckRegistryName(const std::string& name);

// Reads configuration, tokenizer and the safetensors headers of the directory
// or files that the request names, and checks that they fit each other.
// InvalidArgument says what is missing or unsupported; FailedPrecondition names
// a file that was not uploaded.
absl::StatusOr<qlora::v1::Model> InspectModel(
    const qlora::v1::ImportModelRequest& request, const Admission& admission,
    ArtifactStore& artifacts);

}  // namespace qlora::server
