// Frames (frames.h) out of a socket that does not block.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace qlora {

// Used by one thread.
class FrameDecoder {
 public:
  void Append(std::string_view bytes) { buffer_.append(bytes); }

  // The next whole frame's message bytes, or nothing yet. DataLoss: a length
  // above kMaxFrameBytes; the stream cannot be used further.
  absl::StatusOr<std::optional<std::string>> Next();

  // True between two frames.
  bool empty() const { return buffer_.size() == start_; }

 private:
  std::string buffer_;
  // What lies before was returned.
  size_t start_ = 0;
};

}  // namespace qlora
