// The JSON header of a safetensors file (docs/formats/safetensors.md).
// Internal to common/formats. Stateless; any thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/formats/safetensors.h"

namespace qlora::formats_internal {

// The reference reader's limit.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;
inline constexpr size_t kMaxRank = 32;

struct HeaderTensor {
  TensorInfo info;
  // From the first byte after the header.
  int64_t begin = 0;
  int64_t end = 0;
};

struct Header {
  // Sorted by begin, without holes or overlap, each of the size that dtype and
  // shape ask for; the last ends at data_bytes.
  std::vector<HeaderTensor> tensors;
  std::map<std::string, std::string> metadata;
};

// InvalidArgument says which tensor and what is wrong, not which file.
absl::StatusOr<Header> ParseHeader(std::string_view json, uint64_t data_bytes);

// The length field and the padded JSON. The tensors must be in file order.
absl::StatusOr<std::string> FormatHeader(
    const std::vector<TensorToWrite>& tensors,
    const std::map<std::string, std::string>& metadata);

// Bytes of a tensor; InvalidArgument for a negative dimension or overflow.
absl::StatusOr<int64_t> TensorBytes(TensorDtype dtype,
                                    const std::vector<int64_t>& shape);

// For messages: control bytes of a name from a file are escaped.
std::string Quoted(std::string_view name);

}  // namespace qlora::formats_internal
