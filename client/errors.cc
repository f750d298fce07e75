#include "client/errors.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace qlora::client {
namespace {

constexpr char kWhat[] = "qlora/what";
constexpr char kHint[] = "qlora/hint";
constexpr char kUsage[] = "qlora/usage";

std::string PayloadText(const absl::Status& status, const char* key) {
  const absl::optional<absl::Cord> payload = status.GetPayload(key);
  return payload ? std::string(*payload) : "";
}

absl::Status AddPayload(absl::Status status, const char* key,
                        const std::string& text) {
  if (!status.ok() && !text.empty() && !status.GetPayload(key)) {
    status.SetPayload(key, absl::Cord(text));
  }
  return status;
}

}  // namespace

int ExitCodeFor(const absl::Status& status) {
  if (status.GetPayload(kUsage)) return kExitUsage;
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitAuth;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitUnavailable;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return kExitValidation;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return kExitConflict;
    default:
      return kExitError;
  }
}

absl::Status WithWhat(absl::Status status, const std::string& what) {
  return AddPayload(std::move(status), kWhat, what);
}

absl::Status WithHint(absl::Status status, const std::string& command) {
  return AddPayload(std::move(status), kHint, command);
}

std::string ShellWord(const std::string& word) {
  const bool plain =
      !word.empty() && std::all_of(word.begin(), word.end(), [](char c) {
        return absl::ascii_isalnum(c) || absl::StrContains("./_-+=:,@%", c);
      });
  if (plain) return word;
  return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

absl::Status UsageError(const std::string& message) {
  return AddPayload(absl::InvalidArgumentError(message), kUsage, "1");
}

std::string FormatError(const absl::Status& status) {
  const std::string message = absl::StrReplaceAll(
      absl::StripSuffix(status.message(), "\n"), {{"\n", "\n       "}});
  const std::string what = PayloadText(status, kWhat);
  const std::string hint = PayloadText(status, kHint);
  std::string text =
      absl::StrCat("error: ", what.empty() ? message : what, "\n");
  if (!what.empty() && !message.empty()) {
    absl::StrAppend(&text, "cause: ", message, "\n");
  }
  if (!hint.empty()) absl::StrAppend(&text, "hint: ", hint, "\n");
  return text;
}

}  // namespace qlora::client
