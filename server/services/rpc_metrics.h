// Counts and times every call for /metrics. Thread-safe.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include "server/telemetry.h"

namespace qlora::server {

class RpcMetrics
    : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  // telemetry must outlive the server.
  explicit RpcMetrics(Telemetry* telemetry) : telemetry_(telemetry) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override;

 private:
  Telemetry* const telemetry_;
};

}  // namespace qlora::server
