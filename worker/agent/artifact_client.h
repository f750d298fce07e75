// Moves files between this node and the coordinator's artifact store. Thread-
// safe. Every call blocks until it is done or cancelled; while the coordinator
// is away it waits and goes on from where it was.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "qlora/v1/artifact.grpc.pb.h"
#include "worker/agent/cancellation.h"

namespace qlora::agent {

class ArtifactClient {
 public:
  explicit ArtifactClient(std::shared_ptr<grpc::Channel> channel);

  // Appends to the file at `path` what it lacks of the artifact; the digest is
  // checked by the caller. NotFound: the store has no such artifact;
  // ResourceExhausted: this disk is full; Cancelled.
  absl::Status Download(const std::string& sha256, const std::string& path,
                        Cancellation& cancellation);

  // Stores a file whose digest is `sha256`. A store that is full is tried again
  // until `patience` has passed. DataLoss: the file no longer has that digest;
  // ResourceExhausted: the store's disk is full; Cancelled.
  absl::Status Upload(const std::string& sha256, const std::string& path,
                      absl::Duration patience, Cancellation& cancellation);

 private:
  absl::Status DownloadOnce(const std::string& sha256, const std::string& path,
                            Cancellation& cancellation);
  absl::Status UploadOnce(const std::string& sha256, const std::string& path,
                          Cancellation& cancellation);

  const std::unique_ptr<v1::ArtifactService::Stub> stub_;
};

// The same code and message.
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace qlora::agent
