// An open file descriptor with one owner.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace qlora {

// Closes on destruction; -1 is none.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) Reset(other.Release());
    return *this;
  }
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release();
  void Reset(int fd = -1);

 private:
  int fd_ = -1;
};

// Writes all of `content` at the descriptor's position. Errors are those of
// ErrnoToStatus and name `path`; what was written before one stays.
absl::Status WriteAll(int fd, std::string_view content,
                      const std::string& path);

}  // namespace qlora
