// Ctrl-C and its like while a command follows something: noticed, not fatal.
#pragma once

#include <csignal>
#include <initializer_list>
#include <utility>
#include <vector>

namespace qlora::client {

// From construction to destruction the signals only set a flag; a second SIGINT
// ends the process as usual. A SIGHUP that is ignored (nohup) stays so. At most
// one object at a time.
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
