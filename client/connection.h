// The way to a coordinator: one channel, its services, and calls with a
// deadline and a safe retry. All methods may be called from any thread.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/errors.h"
#include "qlora/v1/artifact.grpc.pb.h"
#include "qlora/v1/checkpoint.grpc.pb.h"
#include "qlora/v1/dataset.grpc.pb.h"
#include "qlora/v1/job.grpc.pb.h"
#include "qlora/v1/model.grpc.pb.h"
#include "qlora/v1/node.grpc.pb.h"
#include "qlora/v1/server.grpc.pb.h"

namespace qlora::client {

inline constexpr absl::Duration kCallDeadline = absl::Seconds(10);
// Submitting waits for a synced commit.
inline constexpr absl::Duration kSubmitDeadline = absl::Seconds(30);
// A task on a worker: loads a model first.
inline constexpr absl::Duration kTaskDeadline = absl::Minutes(15);

// A random request id (UUID version 4). A mutating request carries the same one
// through all its retries, so that the server acts once.
std::string NewRequestId();

class Connection {
 public:
  // Does not connect yet.
  explicit Connection(const std::string& endpoint);

  const std::string& endpoint() const { return endpoint_; }
  // The coordinator is on this machine, and sees the same files.
  bool is_local() const;
  v1::JobService::Stub& jobs() { return *jobs_; }
  v1::ArtifactService::Stub& artifacts() { return *artifacts_; }
  v1::CheckpointService::Stub& checkpoints() { return *checkpoints_; }
  v1::DatasetService::Stub& datasets() { return *datasets_; }
  v1::ModelService::Stub& models() { return *models_; }
  v1::NodeService::Stub& nodes() { return *nodes_; }
  v1::ServerService::Stub& server() { return *server_; }

  // One unary call. Tries again, with the same request, while the answer is
  // UNAVAILABLE and the retries (about a second) last.
  //   connection.Call(connection.jobs(), &v1::JobService::Stub::GetJob,
  //   request)
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(
      Stub& stub,
      grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                   Response*),
      const Request& request, absl::Duration deadline = kCallDeadline) {
    Response response;
    const absl::Status status =
        WithRetries(deadline, [&](grpc::ClientContext* context) {
          return (stub.*method)(context, request, &response);
        });
    if (!status.ok()) return status;
    return response;
  }

  // What a finished gRPC call says, in our terms: with google.rpc details, and
  // with words and a hint when there is no coordinator to talk to.
  absl::Status ToStatus(const grpc::Status& status) const;

 private:
  absl::Status WithRetries(
      absl::Duration deadline,
      const std::function<grpc::Status(grpc::ClientContext*)>& call) const;

  const std::string endpoint_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::JobService::Stub> jobs_;
  const std::unique_ptr<v1::ArtifactService::Stub> artifacts_;
  const std::unique_ptr<v1::CheckpointService::Stub> checkpoints_;
  const std::unique_ptr<v1::DatasetService::Stub> datasets_;
  const std::unique_ptr<v1::ModelService::Stub> models_;
  const std::unique_ptr<v1::NodeService::Stub> nodes_;
  const std::unique_ptr<v1::ServerService::Stub> server_;
};

// Between two attempts to come back to a stream that broke off.
inline constexpr absl::Duration kReconnectPause = absl::Milliseconds(500);
// What a command that follows something says meanwhile.
inline constexpr char kAwayNote[] =
    "the coordinator is away; trying again until it is back (Ctrl-C ends this)";
inline constexpr char kBackNote[] = "the coordinator is back";

// True for an answer that came from the connection, not from the server: worth
// another attempt later.
bool IsConnectionLoss(const grpc::Status& status);

}  // namespace qlora::client
