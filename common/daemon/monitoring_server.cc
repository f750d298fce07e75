#include "common/daemon/monitoring_server.h"

#include <CivetServer.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/daemon/address.h"

namespace qlora {
namespace {

struct Answer {
  int code = 200;
  const char* content_type = "text/plain; charset=utf-8";
  std::string body;
};

// Why an address cannot be bound; the web server does not tell.
std::string WhyNotBound(const HostPort& address) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(),
                    &hints, &found);
  if (error != 0) return ::gai_strerror(error);
  const int fd = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  std::string why = "the HTTP server cannot start";
  if (::bind(fd, found->ai_addr, found->ai_addrlen) != 0) {
    why = std::strerror(errno);
  }
  ::close(fd);
  ::freeaddrinfo(found);
  return why;
}

}  // namespace

class MonitoringServer::Handler : public CivetHandler {
 public:
  explicit Handler(std::function<Answer()> answer)
      : answer_(std::move(answer)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const Answer answer = answer_();
    mg_printf(connection,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
              "Connection: close\r\n\r\n",
              answer.code, answer.code == 200 ? "OK" : "Service Unavailable",
              answer.content_type, answer.body.size());
    mg_write(connection, answer.body.data(), answer.body.size());
    return true;
  }

 private:
  const std::function<Answer()> answer_;
};

// The web server looks whether it shall stop every two seconds, or when
// somebody connects.
MonitoringServer::~MonitoringServer() {
  if (server_ == nullptr) return;
  std::atomic<bool> closed = false;
  std::thread knock([&] {
    while (!closed) {
      char error[128];
      mg_connection* connection = mg_connect_client(
          host_.c_str(), port_, /*use_ssl=*/0, error, sizeof(error));
      if (connection != nullptr) mg_close_connection(connection);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  server_->close();
  closed = true;
  knock.join();
}

absl::StatusOr<std::unique_ptr<MonitoringServer>> MonitoringServer::Start(
    Options options) {
  ASSIGN_OR_RETURN(HostPort address, ParseHostPort(options.listen));
  // The web server takes numbers only.
  if (address.host == "localhost") address.host = "127.0.0.1";
  std::unique_ptr<MonitoringServer> self(new MonitoringServer());
  self->metrics_ =
      std::make_unique<Handler>([metrics = std::move(options.metrics)] {
        return Answer{.content_type = "text/plain; version=0.0.4",
                      .body = metrics()};
      });
  self->health_ =
      std::make_unique<Handler>([] { return Answer{.body = "ok\n"}; });
  self->ready_ = std::make_unique<Handler>([ready = std::move(options.ready)] {
    const absl::Status status = ready();
    return status.ok() ? Answer{.body = "ok\n"}
                       : Answer{.code = 503,
                                .body = absl::StrCat(status.message(), "\n")};
  });
  try {
    self->server_ = std::make_unique<CivetServer>(std::vector<std::string>{
        "listening_ports", address.ToString(), "num_threads", "4",
        "request_timeout_ms", "10000"});
  } catch (const CivetException&) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", address.ToString(), ": ", WhyNotBound(address),
        "; choose another with --metrics-listen, port 0 for any free one"));
  }
  address.port = self->server_->getListeningPorts().at(0);
  self->address_ = address.ToString();
  self->host_ = address.host;
  self->port_ = address.port;
  self->server_->addHandler("/metrics$", *self->metrics_);
  self->server_->addHandler("/healthz$", *self->health_);
  self->server_->addHandler("/readyz$", *self->ready_);
  return self;
}

}  // namespace qlora
