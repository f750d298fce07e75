#include "server/services/errors.h"

#include <string>

#include "google/rpc/status.pb.h"
#include "server/status_details.h"

namespace qlora::server {

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // absl took its codes from gRPC.
  const auto code = static_cast<grpc::StatusCode>(status.raw_code());
  const std::string message(status.message());
  const auto payload = status.GetPayload(kBadRequestType);
  if (!payload) return grpc::Status(code, message);
  google::rpc::Status details;
  details.set_code(status.raw_code());
  details.set_message(message);
  auto& any = *details.add_details();
  any.set_type_url(kBadRequestType);
  any.set_value(std::string(*payload));
  return grpc::Status(code, message, details.SerializeAsString());
}

}  // namespace qlora::server
