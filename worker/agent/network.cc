#include "worker/agent/network.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"

namespace qlora::agent {

absl::StatusOr<std::string> InterfaceAddress(const std::string& interface) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) {
    return ErrnoToStatus(errno, "list of network interfaces");
  }
  std::string address;
  std::string known;
  for (const ifaddrs* it = all; it != nullptr; it = it->ifa_next) {
    if (it->ifa_addr == nullptr || it->ifa_addr->sa_family != AF_INET) continue;
    absl::StrAppend(&known, known.empty() ? "" : ", ", it->ifa_name);
    if (interface != it->ifa_name || !address.empty()) continue;
    char text[INET_ADDRSTRLEN];
    ::inet_ntop(AF_INET,
                &reinterpret_cast<const sockaddr_in*>(it->ifa_addr)->sin_addr,
                text, sizeof(text));
    address = text;
  }
  ::freeifaddrs(all);
  if (!address.empty()) return address;
  return absl::NotFoundError(absl::StrCat(
      "--data-plane-interface ", interface,
      ": no such interface with an IPv4 address; there are: ", known));
}

absl::StatusOr<Listener> ListenOn(const std::string& host) {
  Listener listener;
  listener.socket.Reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(host, " is no IPv4 address"));
  }
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  const int fd = listener.socket.get();
  if (fd < 0 || ::bind(fd, generic, size) != 0 || ::listen(fd, 128) != 0 ||
      ::getsockname(fd, generic, &size) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("listening on ", host));
  }
  listener.address = absl::StrCat(host, ":", ntohs(address.sin_port));
  return listener;
}

}  // namespace qlora::agent
