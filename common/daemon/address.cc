#include "common/daemon/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace qlora {

std::string HostPort::ToString() const {
  return host.find(':') == std::string::npos
             ? absl::StrCat(host, ":", port)
             : absl::StrCat("[", host, "]:", port);
}

absl::StatusOr<HostPort> ParseHostPort(std::string_view text) {
  HostPort result;
  const size_t colon = text.rfind(':');
  std::string_view host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != host.npos) {
    host = {};
  }
  result.host = std::string(host);
  if (colon == text.npos || host.empty() ||
      !absl::SimpleAtoi(std::string(text.substr(colon + 1)), &result.port) ||
      result.port < 0 || result.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", std::string(text),
                     "\" is no address; expected HOST:PORT, such as "
                     "127.0.0.1:7070"));
  }
  return result;
}

bool IsLoopbackHost(std::string_view host) {
  const std::string name(host);
  if (name == "localhost") return true;
  in_addr v4;
  if (::inet_pton(AF_INET, name.c_str(), &v4) == 1) {
    return (ntohl(v4.s_addr) >> 24) == 127;
  }
  in6_addr v6;
  return ::inet_pton(AF_INET6, name.c_str(), &v6) == 1 &&
         IN6_IS_ADDR_LOOPBACK(&v6);
}

absl::Status RequireLoopback(std::string_view flag, std::string_view text) {
  const auto address = ParseHostPort(text);
  if (!address.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(flag), ": ", address.status().message()));
  }
  if (IsLoopbackHost(address->host)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(flag), " ", std::string(text),
      ": only loopback addresses are allowed, since this version has no TLS; "
      "use 127.0.0.1 (and, from another machine, an SSH tunnel to it)"));
}

}  // namespace qlora
