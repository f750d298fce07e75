// Interfaces and sockets of the data plane. Thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace qlora::agent {

// The IPv4 address of a network interface ("lo", "eth1"). NotFound naming the
// interfaces there are.
absl::StatusOr<std::string> InterfaceAddress(const std::string& interface);

struct Listener {
  UniqueFd socket;
  // "127.0.0.1:43211".
  std::string address;
};
// Listens on a free port of that address and no other.
absl::StatusOr<Listener> ListenOn(const std::string& host);

}  // namespace qlora::agent
