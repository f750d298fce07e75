// Addresses that daemons listen on and connect to. Thread-safe.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qlora {

struct HostPort {
  // Without the brackets of an IPv6 address.
  std::string host;
  int port = 0;
  std::string ToString() const;
};

// "127.0.0.1:7070", "localhost:0", "[::1]:7070". InvalidArgument naming the
// text.
absl::StatusOr<HostPort> ParseHostPort(std::string_view text);

// True for 127.0.0.0/8, ::1 and "localhost".
bool IsLoopbackHost(std::string_view host);

// There is no TLS yet, so nothing may be reached from elsewhere.
// InvalidArgument naming `flag` and saying what to do unless `text` is a
// loopback address.
absl::Status RequireLoopback(std::string_view flag, std::string_view text);

}  // namespace qlora
