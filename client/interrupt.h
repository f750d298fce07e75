// Ctrl-C while a command follows something: noticed instead of fatal, once.
#pragma once

#include <csignal>
#include <initializer_list>
#include <utility>
#include <vector>

namespace qlora::client {

// From construction to destruction the first of each of the signals only sets a
// flag; a second one ends the process as usual. A SIGHUP that is ignored
// (nohup) stays so. At most one object at a time.
class InterruptScope {
 public:
  explicit InterruptScope(std::initializer_list<int> signals = {SIGINT});
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  // Whether one of them came.
  static bool Interrupted();

 private:
  // Each with what was done on it before.
  std::vector<std::pair<int, void (*)(int)>> before_;
};

}  // namespace qlora::client
