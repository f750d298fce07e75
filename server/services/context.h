// What the services hand their calls to; and how a unary call is answered.
// The services decide nothing: they unpack, call, pack.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>

#include "common/base/sha256.h"
#include "server/admission.h"
#include "server/coordinator.h"
#include "server/notifier.h"
#include "server/services/errors.h"
#include "server/status_details.h"
#include "server/store/artifact_store.h"
#include "server/store/job_log.h"
#include "server/tasks.h"
#include "server/telemetry.h"
#include "server/thread_pool.h"

namespace qlora::server {

// All outlive the services.
struct ServiceContext {
  Coordinator* coordinator;
  JobLog* log;
  ArtifactStore* artifacts;
  Notifier* notifier;
  Telemetry* telemetry;
  Tasks* tasks;
  Admission* admission;
  ThreadPool* pool;
};

// Answers a unary call on the pool with what f returns: absl::Status f().
template <typename F>
grpc::ServerUnaryReactor* Reply(const ServiceContext& services,
                                grpc::CallbackServerContext* context, F f) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  services.pool->Run(
      [reactor, f = std::move(f)] { reactor->Finish(ToGrpc(f())); });
  return reactor;
}

// What names a request for the store of request ids.
inline std::string RequestDigest(const google::protobuf::Message& request) {
  return Sha256Hex(request.GetTypeName() + "\n" + request.SerializeAsString());
}

inline std::string ProjectOf(const std::string& project) {
  return project.empty() ? "default" : project;
}

}  // namespace qlora::server
