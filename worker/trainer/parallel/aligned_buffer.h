// Uninitialized memory aligned for slabs. Movable, owned by one.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace qlora::trainer {

class AlignedBuffer {
 public:
  static constexpr int64_t kAlignment = 64;

  AlignedBuffer() = default;
  // ResourceExhausted naming `what`.
  static absl::StatusOr<AlignedBuffer> Create(int64_t bytes,
                                              std::string_view what) {
    AlignedBuffer buffer;
    const int64_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    buffer.data_.reset(static_cast<uint8_t*>(
        std::aligned_alloc(kAlignment, static_cast<size_t>(rounded))));
    if (buffer.data_ == nullptr && bytes > 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "no memory for ", std::string(what), " (", bytes, " bytes)"));
    }
    buffer.size_ = bytes;
    return buffer;
  }

  std::span<uint8_t> bytes() const {
    return {data_.get(), static_cast<size_t>(size_)};
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  int64_t size_ = 0;
};

}  // namespace qlora::trainer
