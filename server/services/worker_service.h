// WorkerService of proto/qlora/v1/worker.proto: one stream per node.
//
// Reads are handled one after the other on the pool. Writes go out in the order
// Welcome, then acknowledgements and commands as they come; commands are pulled
// from the coordinator's outbox, so a slow node holds no memory here.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "common/base/mutex.h"
#include "qlora/v1/worker.grpc.pb.h"
#include "server/services/context.h"

namespace qlora::server {

class WorkerStream;

// The open streams by node, for the coordinator's effects. Thread-safe.
class WorkerStreams {
 public:
  void Add(const std::string& node, std::weak_ptr<WorkerStream> stream);
  // There are new commands for the node.
  void WakeCommands(const std::string& node);
  void AckEvents(const std::string& node, uint64_t number);
  // Closes that stream, if it is open.
  void Close(const std::string& node, uint64_t stream,
             const absl::Status& status);
  void CloseAll(const absl::Status& status);

 private:
  std::shared_ptr<WorkerStream> Find(const std::string& node);

  Mutex mu_;
  std::map<std::string, std::weak_ptr<WorkerStream>> streams_
      ABSL_GUARDED_BY(mu_);
};

class WorkerService : public qlora::v1::WorkerService::CallbackService {
 public:
  WorkerService(const ServiceContext& services, WorkerStreams* streams)
      : services_(services), streams_(streams) {}

  grpc::ServerBidiReactor<qlora::v1::ConnectRequest,
                          qlora::v1::ConnectResponse>*
  Connect(grpc::CallbackServerContext* context) override;

 private:
  const ServiceContext services_;
  WorkerStreams* const streams_;
  std::atomic<uint64_t> last_stream_ = 0;
};

}  // namespace qlora::server
