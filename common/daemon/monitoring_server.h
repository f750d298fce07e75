// A daemon's HTTP side:
//   /metrics   Prometheus text
//   /healthz   200 while the process answers
//   /readyz    200 when it can do its work, else 503 with the reason
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

class CivetServer;

namespace qlora {

class MonitoringServer {
 public:
  struct Options {
    // "127.0.0.1:9464"; port 0 takes a free one. What --metrics-listen says.
    std::string listen;
    // Both are called from the server's threads, also at the same time.
    std::function<std::string()> metrics;
    std::function<absl::Status()> ready;
  };

  // InvalidArgument: no address; Unavailable: it cannot be listened on, naming
  // it, why, and the flag.
  static absl::StatusOr<std::unique_ptr<MonitoringServer>> Start(
      Options options);
  // Waits for the requests that are being answered.
  ~MonitoringServer();
  MonitoringServer(const MonitoringServer&) = delete;
  MonitoringServer& operator=(const MonitoringServer&) = delete;

  // With the port that was taken.
  const std::string& address() const { return address_; }

 private:
  class Handler;
  MonitoringServer() = default;

  std::string address_;
  std::string host_;
  int port_ = 0;
  // The server is stopped before what it calls goes.
  std::unique_ptr<Handler> metrics_;
  std::unique_ptr<Handler> health_;
  std::unique_ptr<Handler> ready_;
  std::unique_ptr<CivetServer> server_;
};

}  // namespace qlora
