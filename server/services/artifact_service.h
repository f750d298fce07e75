// ArtifactService of proto/qlora/v1/artifact.proto.
#pragma once

#include "qlora/v1/artifact.grpc.pb.h"
#include "server/services/context.h"

namespace qlora::server {

class ArtifactService : public qlora::v1::ArtifactService::CallbackService {
 public:
  explicit ArtifactService(const ServiceContext& services)
      : services_(services) {}

  grpc::ServerUnaryReactor* StatArtifact(
      grpc::CallbackServerContext* context,
      const qlora::v1::StatArtifactRequest* request,
      qlora::v1::StatArtifactResponse* response) override;
  grpc::ServerReadReactor<qlora::v1::UploadArtifactRequest>* UploadArtifact(
      grpc::CallbackServerContext* context,
      qlora::v1::UploadArtifactResponse* response) override;
  grpc::ServerWriteReactor<qlora::v1::DownloadArtifactResponse>*
  DownloadArtifact(grpc::CallbackServerContext* context,
                   const qlora::v1::DownloadArtifactRequest* request) override;

 private:
  const ServiceContext services_;
};

}  // namespace qlora::server
