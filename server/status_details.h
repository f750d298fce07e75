// Statuses that say at which places of a job file or request something is
// wrong. services/errors.h brings the places to the wire.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/spec/job_spec.h"

namespace qlora::server {

// Key of the payload that carries a serialized google.rpc.BadRequest.
inline constexpr char kBadRequestType[] =
    "type.googleapis.com/google.rpc.BadRequest";

// InvalidArgument whose message lists all errors.
absl::Status JobFileError(const std::vector<SpecError>& errors);

// InvalidArgument for one place.
absl::Status FieldError(const std::string& field, const std::string& message);

// The same if the value is negative.
absl::Status CheckNotNegative(const std::string& field, int64_t value);

}  // namespace qlora::server
