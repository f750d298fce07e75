#include "server/services/rpc_metrics.h"

#include <string>

#include "absl/time/clock.h"

namespace qlora::server {
namespace {

// "OK", "NOT_FOUND"...
std::string CodeName(grpc::StatusCode code) {
  return code == grpc::StatusCode::OK
             ? "OK"
             : absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

class Interceptor : public grpc::experimental::Interceptor {
 public:
  // method: "/qlora.v1.JobService/GetJob".
  Interceptor(Telemetry* telemetry, std::string method)
      : telemetry_(telemetry), method_(std::move(method)) {}

  void Intercept(
      grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_STATUS)) {
      const size_t slash = method_.rfind('/');
      telemetry_->CountRpc(method_.substr(1, slash - 1),
                           method_.substr(slash + 1),
                           CodeName(methods->GetSendStatus().error_code()),
                           absl::Now() - start_);
    }
    methods->Proceed();
  }

 private:
  Telemetry* const telemetry_;
  const std::string method_;
  const absl::Time start_ = absl::Now();
};

}  // namespace

grpc::experimental::Interceptor* RpcMetrics::CreateServerInterceptor(
    grpc::experimental::ServerRpcInfo* info) {
  return new Interceptor(telemetry_, info->method());
}

}  // namespace qlora::server
