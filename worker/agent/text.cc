#include "worker/agent/text.h"

#include "common/base/utf8.h"

namespace qlora::agent {
namespace {

constexpr size_t kMaxLine = 8 << 10;

}  // namespace

void LineSplitter::Append(std::string_view bytes) {
  for (const char c : bytes) {
    if (c != '\n') pending_.push_back(c);
    if (c == '\n' || pending_.size() >= kMaxLine) Flush();
  }
}

void LineSplitter::Finish() { Flush(); }

void LineSplitter::Flush() {
  if (!pending_.empty() && pending_.back() == '\r') pending_.pop_back();
  if (!pending_.empty()) on_line_(ToValidUtf8(pending_));
  pending_.clear();
}

}  // namespace qlora::agent
