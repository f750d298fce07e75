// Ctrl-C while a command follows something: noticed instead of fatal, once.
#pragma once

namespace qlora::client {

// From construction to destruction the first SIGINT only sets a flag; a second
// one ends the process as usual. At most one object at a time.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  // Whether SIGINT came.
  static bool Interrupted();
};

}  // namespace qlora::client
