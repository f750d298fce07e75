// A buffer whose surroundings are watched, for tests of what an op writes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace qlora::kernels {

// `bytes` bytes, `shift` after a multiple of 64, among others of the same
// value. Two of them are equal if all of this is.
class Guarded {
 public:
  explicit Guarded(int64_t bytes, int64_t shift = 0)
      : storage_(kGuard + shift + bytes + kGuard + 64, kByte),
        begin_(kGuard + shift),
        size_(begin_ + bytes + kGuard) {}
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <typename T>
  T* as() {
    return static_cast<T*>(static_cast<void*>(Start() + begin_));
  }
  bool operator==(const Guarded& other) const {
    const uint8_t* a = const_cast<Guarded*>(this)->Start();
    const uint8_t* b = const_cast<Guarded&>(other).Start();
    return size_ == other.size_ && std::equal(a, a + size_, b);
  }

 private:
  static constexpr int64_t kGuard = 64;
  static constexpr uint8_t kByte = 0xa5;

  uint8_t* Start() {
    const auto odd = reinterpret_cast<uintptr_t>(storage_.data()) % 64;
    return storage_.data() + (64 - odd) % 64;
  }

  std::vector<uint8_t> storage_;
  int64_t begin_;
  int64_t size_;
};

}  // namespace qlora::kernels
