#include "server/services/artifact_service.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "server/services/pull_stream.h"

namespace qlora::server {
namespace {

constexpr size_t kMaxChunk = 1 << 20;

// One upload call. Owns itself.
class UploadCall
    : public grpc::ServerReadReactor<qlora::v1::UploadArtifactRequest> {
 public:
  UploadCall(const ServiceContext& services,
             qlora::v1::UploadArtifactResponse* response)
      : services_(services), response_(response) {
    StartRead(&request_);
  }
  void OnReadDone(bool ok) override {
    services_.pool->Run([this, ok] {
      const absl::Status status = ok ? Take() : End();
      if (ok && status.ok()) return StartRead(&request_);
      // Closed before the answer: a retry finds it free.
      upload_.reset();
      Finish(ToGrpc(status));
    });
  }
  void OnDone() override { delete this; }

 private:
  absl::Status Take() {
    if (request_.data().size() > kMaxChunk) {
      return absl::InvalidArgumentError(
          absl::StrCat("a chunk has ", request_.data().size(),
                       " bytes, at most ", kMaxChunk, " are allowed"));
    }
    if (upload_ == nullptr) {
      ASSIGN_OR_RETURN(upload_, services_.artifacts->BeginUpload(
                                    request_.sha256(), request_.total_bytes()));
      response_->set_size_bytes(request_.total_bytes());
    }
    return upload_->Append(request_.offset(), request_.data());
  }
  absl::Status End() {
    if (upload_ == nullptr) {
      return absl::InvalidArgumentError("the upload has no header");
    }
    return upload_->Finish();
  }

  const ServiceContext services_;
  qlora::v1::UploadArtifactResponse* const response_;
  qlora::v1::UploadArtifactRequest request_;
  std::unique_ptr<ArtifactStore::Upload> upload_;
};

}  // namespace

grpc::ServerUnaryReactor* ArtifactService::StatArtifact(
    grpc::CallbackServerContext* context,
    const qlora::v1::StatArtifactRequest* request,
    qlora::v1::StatArtifactResponse* response) {
  return Reply(services_, context, [=, this]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto info,
                     services_.artifacts->Stat(request->sha256()));
    response->set_complete(info.complete);
    response->set_size_bytes(info.size_bytes);
    return absl::OkStatus();
  });
}

grpc::ServerReadReactor<qlora::v1::UploadArtifactRequest>*
ArtifactService::UploadArtifact(grpc::CallbackServerContext*,
                                qlora::v1::UploadArtifactResponse* response) {
  return new UploadCall(services_, response);
}

grpc::ServerWriteReactor<qlora::v1::DownloadArtifactResponse>*
ArtifactService::DownloadArtifact(
    grpc::CallbackServerContext*,
    const qlora::v1::DownloadArtifactRequest* request) {
  struct Download {
    std::string sha256;
    int64_t offset;
    std::unique_ptr<ArtifactStore::Reader> reader;
    bool sent = false;
  };
  auto download = std::make_shared<Download>(
      Download{request->sha256(), request->offset(), nullptr});
  ArtifactStore* artifacts = services_.artifacts;
  return StartPull<qlora::v1::DownloadArtifactResponse>(
      services_.pool, services_.notifier, "",
      [=](qlora::v1::DownloadArtifactResponse* response)
          -> absl::StatusOr<Pull> {
        if (download->reader == nullptr) {
          ASSIGN_OR_RETURN(download->reader,
                           artifacts->OpenRead(download->sha256));
          if (download->offset < 0 ||
              download->offset > download->reader->size_bytes()) {
            return absl::OutOfRangeError(
                absl::StrCat("offset ", download->offset, " of an artifact of ",
                             download->reader->size_bytes(), " bytes"));
          }
        }
        const int64_t size = download->reader->size_bytes();
        // An empty artifact is one empty message.
        if (download->sent && download->offset >= size) return Pull::kEnd;
        ASSIGN_OR_RETURN(std::string data,
                         download->reader->Read(download->offset, kMaxChunk));
        response->set_offset(download->offset);
        response->set_total_bytes(size);
        download->offset += static_cast<int64_t>(data.size());
        download->sent = true;
        response->set_data(std::move(data));
        return Pull::kItem;
      });
}

}  // namespace qlora::server
