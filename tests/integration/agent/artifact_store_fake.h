// The artifact service of worker tests: in memory, behind real gRPC on a free
// loopback port. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "common/base/mutex.h"
#include "common/base/sha256.h"
#include "qlora/v1/artifact.grpc.pb.h"

namespace qlora::agent {

class ArtifactStoreFake : public v1::ArtifactService::Service {
 public:
  ArtifactStoreFake() { Start(0); }

  // Goes away, keeping what it has and its port.
  void Stop() {
    server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }
  void Restart() { Start(port_); }

  std::string Put(const std::string& content) {
    MutexLock lock(&mu_);
    const std::string digest = Sha256Hex(content);
    stored_[digest] = content;
    return digest;
  }
  bool Has(const std::string& digest) {
    MutexLock lock(&mu_);
    return stored_.contains(digest);
  }
  std::string Get(const std::string& digest) {
    MutexLock lock(&mu_);
    return stored_[digest];
  }
  // Downloads break after that many chunks; 0: never.
  void BreakDownloadsAfter(int chunks) { break_after_ = chunks; }
  // Downloads wait before their first byte.
  void PauseDownloads(bool paused) {
    MutexLock lock(&mu_);
    paused_ = paused;
    resumed_.SignalAll();
  }
  // Uploads too.
  void PauseUploads(bool paused) {
    MutexLock lock(&mu_);
    uploads_paused_ = paused;
    resumed_.SignalAll();
  }
  // Downloads send wrong bytes.
  void Corrupt(bool corrupt) { corrupt_ = corrupt; }
  // When that upload (from 1) ends, what came before it is collected.
  void CollectAtUpload(int upload) { collect_at_ = upload; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  int downloads() const { return downloads_; }

  grpc::Status StatArtifact(grpc::ServerContext*,
                            const v1::StatArtifactRequest* request,
                            v1::StatArtifactResponse* response) override {
    MutexLock lock(&mu_);
    const auto it = stored_.find(request->sha256());
    response->set_complete(it != stored_.end());
    const std::string& content =
        it != stored_.end() ? it->second : parts_[request->sha256()];
    response->set_size_bytes(static_cast<int64_t>(content.size()));
    return grpc::Status::OK;
  }

  grpc::Status UploadArtifact(grpc::ServerContext* context,
                              grpc::ServerReader<v1::UploadArtifactRequest>* in,
                              v1::UploadArtifactResponse* response) override {
    {
      MutexLock lock(&mu_);
      while (uploads_paused_ && !context->IsCancelled()) {
        resumed_.WaitWithTimeout(&mu_, absl::Milliseconds(20));
      }
    }
    v1::UploadArtifactRequest chunk;
    std::string digest;
    size_t total = 0;
    while (in->Read(&chunk)) {
      MutexLock lock(&mu_);
      if (!chunk.sha256().empty()) {
        digest = chunk.sha256();
        total = static_cast<size_t>(chunk.total_bytes());
      }
      std::string& part = parts_[digest];
      if (static_cast<size_t>(chunk.offset()) != part.size()) {
        return {grpc::StatusCode::OUT_OF_RANGE, "offset"};
      }
      part += chunk.data();
    }
    MutexLock lock(&mu_);
    if (parts_[digest].size() != total) {
      return {grpc::StatusCode::UNAVAILABLE, "broken"};
    }
    if (Sha256Hex(parts_[digest]) != digest) {
      return {grpc::StatusCode::DATA_LOSS, "digest"};
    }
    if (++uploads_ == collect_at_) {
      stored_.clear();
      std::erase_if(parts_, [&](const auto& p) { return p.first != digest; });
    }
    stored_[digest] = parts_[digest];
    response->set_size_bytes(static_cast<int64_t>(total));
    return grpc::Status::OK;
  }

  grpc::Status DownloadArtifact(
      grpc::ServerContext* context, const v1::DownloadArtifactRequest* request,
      grpc::ServerWriter<v1::DownloadArtifactResponse>* out) override {
    constexpr size_t kChunk = 1 << 20;
    ++downloads_;
    std::string content;
    {
      MutexLock lock(&mu_);
      while (paused_ && !context->IsCancelled()) {
        resumed_.WaitWithTimeout(&mu_, absl::Milliseconds(20));
      }
      const auto it = stored_.find(request->sha256());
      if (it == stored_.end()) {
        return {grpc::StatusCode::NOT_FOUND, "no such artifact"};
      }
      content = it->second;
    }
    if (corrupt_) content[0] ^= 1;
    size_t offset = static_cast<size_t>(request->offset());
    for (int sent = 0; offset < content.size(); ++sent) {
      if (break_after_ > 0 && sent == break_after_) {
        return {grpc::StatusCode::UNAVAILABLE, "broken"};
      }
      v1::DownloadArtifactResponse response;
      response.set_offset(static_cast<int64_t>(offset));
      response.set_data(content.substr(offset, kChunk));
      offset += response.data().size();
      if (!out->Write(response)) break;
    }
    return grpc::Status::OK;
  }

 private:
  void Start(int port) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port),
                             grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<int> break_after_ = 0;
  std::atomic<bool> corrupt_ = false;
  std::atomic<int> downloads_ = 0;
  std::atomic<int> uploads_ = 0;
  std::atomic<int> collect_at_ = 0;
  Mutex mu_;
  CondVar resumed_;
  bool paused_ ABSL_GUARDED_BY(mu_) = false;
  bool uploads_paused_ ABSL_GUARDED_BY(mu_) = false;
  std::map<std::string, std::string> stored_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::string> parts_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::agent
