// absl::Status on the wire: code, readable message, and the details of
// status_details.h as google.rpc.Status.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace qlora::server {

// What is too long for gRPC's trailers is cut.
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace qlora::server
