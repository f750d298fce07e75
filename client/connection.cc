#include "client/connection.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <random>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "google/rpc/status.pb.h"

namespace qlora::client {
namespace {

constexpr int kAttempts = 4;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& endpoint) {
  // Between calls gRPC looks at its sockets this often only, and at 5 s unless
  // told: what connects or is refused meanwhile would stay unseen so long.
  ::setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "100",
           /*overwrite=*/0);
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Somebody waits: a coordinator that is back is to be noticed at once.
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  // How long one attempt to connect may take.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2'000);
  // A proxy that the environment names is for the web, not for this server.
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(),
                                   args);
}

// gRPC wraps the reason that matters: keep what stands behind the last of
// these.
std::string ConnectionCause(std::string message) {
  for (const std::string_view before :
       {"last error: ", "UNKNOWN: ", "Failed to connect to remote host: "}) {
    const size_t at = message.find(before);
    if (at != std::string::npos) message.erase(0, at + before.size());
  }
  return message;
}

// The message, and each violation of a BadRequest that it does not repeat.
std::string MessageWithDetails(const grpc::Status& status) {
  std::string text = status.error_message();
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return text;
  for (const google::protobuf::Any& detail : details.details()) {
    google::rpc::BadRequest bad;
    if (!detail.Is<google::rpc::BadRequest>() || !detail.UnpackTo(&bad)) {
      continue;
    }
    for (const auto& violation : bad.field_violations()) {
      if (absl::StrContains(text, violation.description())) continue;
      absl::StrAppend(&text, "\n", violation.field(), ": ",
                      violation.description());
    }
  }
  return text;
}

}  // namespace

std::string NewRequestId() {
  std::random_device random;
  std::array<uint32_t, 4> words;
  for (uint32_t& word : words) word = random();
  words[1] = (words[1] & 0xFFFF0FFF) | 0x00004000;
  words[2] = (words[2] & 0x3FFFFFFF) | 0x80000000;
  return absl::StrFormat("%08x-%04x-%04x-%04x-%04x%08x", words[0],
                         words[1] >> 16, words[1] & 0xFFFF, words[2] >> 16,
                         words[2] & 0xFFFF, words[3]);
}

bool IsConnectionLoss(const grpc::Status& status) {
  // CANCELLED: a server that shuts down ends the calls that are left.
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::CANCELLED;
}

Connection::Connection(const std::string& endpoint)
    : endpoint_(endpoint),
      channel_(MakeChannel(endpoint)),
      jobs_(v1::JobService::NewStub(channel_)),
      artifacts_(v1::ArtifactService::NewStub(channel_)),
      checkpoints_(v1::CheckpointService::NewStub(channel_)),
      datasets_(v1::DatasetService::NewStub(channel_)),
      models_(v1::ModelService::NewStub(channel_)),
      nodes_(v1::NodeService::NewStub(channel_)),
      server_(v1::ServerService::NewStub(channel_)) {}

bool Connection::is_local() const {
  return absl::StartsWith(endpoint_, "127.") ||
         absl::StartsWith(endpoint_, "localhost:") ||
         absl::StartsWith(endpoint_, "[::1]");
}

absl::Status Connection::ToStatus(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string& message = status.error_message();
  const std::string hint =
      is_local() ? "qloractl local start" : "qloractl context list";
  if (code == absl::StatusCode::kDeadlineExceeded) {
    return WithHint(
        WithWhat(
            absl::DeadlineExceededError("no answer within the deadline"),
            absl::StrCat("the coordinator at ", endpoint_, " does not answer")),
        is_local() ? "qloractl local status" : "qloractl context list");
  }
  if (code == absl::StatusCode::kUnavailable &&
      (absl::StrContains(message, "failed to connect") ||
       absl::StrContains(message, "Socket closed") ||
       absl::StrContains(message, "Connection reset") ||
       absl::StrContains(message, "DNS resolution failed"))) {
    return WithHint(
        WithWhat(absl::UnavailableError(ConnectionCause(message)),
                 absl::StrCat("cannot reach the coordinator at ", endpoint_)),
        hint);
  }
  return absl::Status(code, MessageWithDetails(status));
}

absl::Status Connection::WithRetries(
    absl::Duration deadline,
    const std::function<grpc::Status(grpc::ClientContext*)>& call) const {
  const absl::Time end = absl::Now() + deadline;
  absl::Duration pause = absl::Milliseconds(150);
  for (int attempt = 1;; ++attempt) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(end));
    const grpc::Status status = call(&context);
    if (!IsConnectionLoss(status) || attempt == kAttempts ||
        absl::Now() + pause > end) {
      return ToStatus(status);
    }
    absl::SleepFor(pause);
    pause *= 2;
  }
}

}  // namespace qlora::client
