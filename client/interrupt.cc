#include "client/interrupt.h"

namespace qlora::client {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void OnInterrupt(int signal) {
  interrupted = 1;
  // A second Ctrl-C ends the program. The others come twice on their own: a
  // terminal's end is told by its shell and by the kernel.
  if (signal == SIGINT) std::signal(signal, SIG_DFL);
}

}  // namespace

InterruptScope::InterruptScope(std::initializer_list<int> signals) {
  interrupted = 0;
  for (const int signal : signals) {
    const auto before = std::signal(signal, OnInterrupt);
    if (signal == SIGHUP && before == SIG_IGN) std::signal(signal, SIG_IGN);
    before_.push_back({signal, before});
  }
}

InterruptScope::~InterruptScope() {
  for (const auto& [signal, before] : before_) std::signal(signal, before);
}

bool InterruptScope::Interrupted() { return interrupted != 0; }

}  // namespace qlora::client
