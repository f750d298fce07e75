#include "worker/frames/frame_decoder.h"

#include "absl/strings/str_cat.h"
#include "worker/frames/frames.h"

namespace qlora {

absl::StatusOr<std::optional<std::string>> FrameDecoder::Next() {
  constexpr size_t kHeaderBytes = 4;
  const size_t available = buffer_.size() - start_;
  if (available < kHeaderBytes) return std::nullopt;
  uint32_t size = 0;
  for (size_t i = 0; i < kHeaderBytes; ++i) {
    size |= static_cast<uint32_t>(static_cast<uint8_t>(buffer_[start_ + i]))
            << (8 * i);
  }
  if (size > kMaxFrameBytes) {
    return absl::DataLossError(absl::StrCat("a frame claims ", size,
                                            " bytes; at most ", kMaxFrameBytes,
                                            " are allowed"));
  }
  if (available - kHeaderBytes < size) return std::nullopt;
  std::string message = buffer_.substr(start_ + kHeaderBytes, size);
  start_ += kHeaderBytes + size;
  if (start_ == buffer_.size() || start_ > kMaxFrameBytes) {
    buffer_.erase(0, start_);
    start_ = 0;
  }
  return message;
}

}  // namespace qlora
