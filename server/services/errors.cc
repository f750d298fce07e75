#include "server/services/errors.h"

#include <cstddef>
#include <string>
#include <string_view>

#include "common/base/utf8.h"
#include "google/rpc/status.pb.h"
#include "server/status_details.h"

namespace qlora::server {
namespace {

// A status travels in trailers, of which gRPC takes 8 KiB in all: the message
// percent-encoded, then in base64 the message once more and the violations.
constexpr size_t kMaxEncodedMessage = 2400;
constexpr size_t kMaxViolations = 1200;

// As much of the text as fits, whole characters.
std::string Cut(std::string text) {
  size_t encoded = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    encoded += c >= 0x20 && c < 0x7f && c != '%' ? 1 : 3;
    if (encoded <= kMaxEncodedMessage) continue;
    while (i > 0 && (static_cast<unsigned char>(text[i]) & 0xc0) == 0x80) --i;
    return text.substr(0, i) + "...";
  }
  return text;
}

// Without the last violations, if they are too much.
std::string CutViolations(const std::string& serialized) {
  google::rpc::BadRequest bad;
  if (serialized.size() <= kMaxViolations || !bad.ParseFromString(serialized)) {
    return serialized;
  }
  while (bad.ByteSizeLong() > kMaxViolations) {
    bad.mutable_field_violations()->RemoveLast();
  }
  return bad.SerializeAsString();
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // absl took its codes from gRPC.
  const auto code = static_cast<grpc::StatusCode>(status.raw_code());
  const std::string message = Cut(ToValidUtf8(
      std::string_view(status.message().data(), status.message().size())));
  const auto payload = status.GetPayload(kBadRequestType);
  if (!payload) return grpc::Status(code, message);
  google::rpc::Status details;
  details.set_code(status.raw_code());
  details.set_message(message);
  auto& any = *details.add_details();
  any.set_type_url(kBadRequestType);
  any.set_value(CutViolations(std::string(*payload)));
  return grpc::Status(code, message, details.SerializeAsString());
}

}  // namespace qlora::server
