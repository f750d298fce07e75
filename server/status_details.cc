#include "server/status_details.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/status.pb.h"

namespace qlora::server {
namespace {

void Attach(const google::rpc::BadRequest& details, absl::Status& status) {
  status.SetPayload(kBadRequestType, absl::Cord(details.SerializeAsString()));
}

}  // namespace

absl::Status JobFileError(const std::vector<SpecError>& errors) {
  absl::Status status = SpecErrorsToStatus(errors, "job file");
  google::rpc::BadRequest details;
  for (const SpecError& error : errors) {
    auto& violation = *details.add_field_violations();
    violation.set_field(error.path);
    violation.set_description(
        error.line > 0 ? absl::StrCat("line ", error.line, ", column ",
                                      error.column, ": ", error.message)
                       : error.message);
  }
  Attach(details, status);
  return status;
}

absl::Status FieldError(const std::string& field, const std::string& message) {
  absl::Status status =
      absl::InvalidArgumentError(absl::StrCat(field, ": ", message));
  google::rpc::BadRequest details;
  auto& violation = *details.add_field_violations();
  violation.set_field(field);
  violation.set_description(message);
  Attach(details, status);
  return status;
}

absl::Status CheckNotNegative(const std::string& field, int64_t value) {
  if (value >= 0) return absl::OkStatus();
  return FieldError(field, "must not be negative");
}

}  // namespace qlora::server
