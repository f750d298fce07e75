// Uninitialized memory aligned for slabs, in huge pages where the system has
// them. Movable, owned by one.
#pragma once

#include <sys/mman.h>

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
  // With small ones, streams through memory wait for translations of addresses.
  static constexpr int64_t kHugePage = 2 << 20;

  AlignedBuffer() = default;
  // ResourceExhausted naming `what`.
  static absl::StatusOr<AlignedBuffer> Create(int64_t bytes,
                                              std::string_view what) {
    void* data = nullptr;
    if (posix_memalign(&data, bytes < kHugePage ? kAlignment : kHugePage,
                       static_cast<size_t>(bytes)) != 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "no memory for ", std::string(what), " (", bytes, " bytes)"));
    }
    AlignedBuffer buffer;
    buffer.data_.reset(static_cast<uint8_t*>(data));
    buffer.size_ = bytes;
#ifdef MADV_HUGEPAGE
    // Whole ones only, so that none lies half outside. Refused, the memory is
    // as good, only slower.
    madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
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
