// What every verb gets: where to talk to and where to print. Made once by the
// command line, used by one thread.
#pragma once

#include <istream>
#include <memory>
#include <string>

#include "client/config.h"
#include "client/connection.h"
#include "client/output.h"

namespace qlora::client {

struct Session {
  Output output;
  Config config;
  // --context, or the current one; may be empty.
  std::string context;
  // host:port after flag, environment and file; empty for a verb that talks to
  // no coordinator.
  std::string endpoint;
  // Empty: the server's default.
  std::string project;

  // Connects lazily; the first call that needs the server makes it.
  Connection& connection() {
    if (connection_ == nullptr) {
      connection_ = std::make_unique<Connection>(endpoint);
    }
    return *connection_;
  }

 private:
  std::unique_ptr<Connection> connection_;
};

}  // namespace qlora::client
