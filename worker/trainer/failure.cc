#include "worker/trainer/failure.h"

#include <string>

#include "absl/strings/cord.h"

namespace qlora::trainer {
namespace {

constexpr char kPayloadUrl[] = "qlora.v1.FailureClass";

v1::FailureClass ClassOfCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kPermissionDenied:
      return v1::FAILURE_CLASS_USER;
    case absl::StatusCode::kResourceExhausted:
      return v1::FAILURE_CLASS_OOM;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kDataLoss:
      return v1::FAILURE_CLASS_INFRA;
    default:
      return v1::FAILURE_CLASS_INTERNAL;
  }
}

int ExitCode(v1::FailureClass failure_class) {
  switch (failure_class) {
    case v1::FAILURE_CLASS_USER:
      return 10;
    case v1::FAILURE_CLASS_NUMERICAL:
      return 11;
    case v1::FAILURE_CLASS_OOM:
      return 12;
    case v1::FAILURE_CLASS_INFRA:
      return 13;
    case v1::FAILURE_CLASS_DISK:
      return 15;
    default:
      return 16;
  }
}

}  // namespace

Failure ClassifyFailure(const absl::Status& status) {
  v1::FailureClass failure_class = ClassOfCode(status.code());
  if (const auto payload = status.GetPayload(kPayloadUrl)) {
    const std::string name(*payload);
    v1::FailureClass_Parse(name, &failure_class);
  }
  return {failure_class, ExitCode(failure_class)};
}

absl::Status MarkFailure(absl::Status status, v1::FailureClass failure_class) {
  status.SetPayload(kPayloadUrl,
                    absl::Cord(v1::FailureClass_Name(failure_class)));
  return status;
}

absl::Status NumericalError(std::string_view message) {
  return MarkFailure(absl::OutOfRangeError(std::string(message)),
                     v1::FAILURE_CLASS_NUMERICAL);
}

absl::Status DiskError(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) && !absl::IsUnavailable(status) &&
      !absl::IsPermissionDenied(status)) {
    return status;
  }
  return MarkFailure(status, v1::FAILURE_CLASS_DISK);
}

}  // namespace qlora::trainer
