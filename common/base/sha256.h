// SHA-256, the name of every artifact. A Sha256 is used by one thread at a
// time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace qlora {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(std::string_view bytes);
  // Lower-case hex, 64 characters. The object is spent afterwards.
  std::string HexDigest();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string Sha256Hex(std::string_view bytes);

// NotFound if there is no such file, Unavailable if reading fails, Cancelled
// once `cancelled` (asked again for each MiB; null: never) says true.
absl::StatusOr<std::string> Sha256OfFile(
    const std::string& path, const std::function<bool()>& cancelled = nullptr);

// True for 64 lower-case hex characters.
bool IsSha256Hex(std::string_view text);

}  // namespace qlora
