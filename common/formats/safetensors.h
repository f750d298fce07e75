// safetensors files, single and sharded (docs/formats/safetensors.md; the
// reference is the safetensors crate's tensor.rs). Untrusted input: every size
// is checked against the file before anything is allocated.
//
// A SafetensorsReader is immutable after Open and may be read by many threads.
// It maps its files: they must not be cut short while it lives.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qlora {

// Those of the format that this project reads or writes.
enum class TensorDtype {
  kBool,
  kU8,
  kI8,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64
};

// Bytes of one element.
int64_t DtypeSize(TensorDtype dtype);
// "F32".
std::string_view DtypeName(TensorDtype dtype);

struct TensorInfo {
  std::string name;
  TensorDtype dtype;
  std::vector<int64_t> shape;
  // Bytes of the data.
  int64_t size_bytes;
  int64_t num_elements() const;
};

class SafetensorsReader {
 public:
  // A single file. NotFound, or InvalidArgument naming file, tensor and what is
  // wrong (header past the end, overlap, hole, size that does not match...).
  static absl::StatusOr<std::unique_ptr<SafetensorsReader>> Open(
      const std::string& path);
  // DIR/model.safetensors, or DIR/model.safetensors.index.json with its shards.
  // NotFound names the missing file or shard.
  static absl::StatusOr<std::unique_ptr<SafetensorsReader>> OpenModel(
      const std::string& directory);
  virtual ~SafetensorsReader() = default;

  // Sorted by name.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  // Null if absent.
  virtual const TensorInfo* Find(std::string_view name) const = 0;
  // The bytes as stored, little-endian, mapped; valid while the reader lives.
  virtual absl::StatusOr<std::span<const uint8_t>> Data(
      std::string_view name) const = 0;
  // Converted to float32 (from F32, F16, BF16, F64). Some MiB of the file at
  // most become resident by it.
  virtual absl::Status ReadFloat32(std::string_view name,
                                   std::span<float> out) const = 0;
  virtual const std::map<std::string, std::string>& metadata() const = 0;
};

struct TensorToWrite {
  std::string name;
  TensorDtype dtype;
  std::vector<int64_t> shape;
  std::span<const uint8_t> data;
};

// Writes path (through a temporary file beside it) with the header padded to 8
// bytes and tensors ordered as the reference writer does, and syncs the file,
// not the directory. Gives the file's SHA-256. InvalidArgument when shape and
// data disagree or a name is repeated; ResourceExhausted when the disk is full;
// nothing stays behind then.
absl::StatusOr<std::string> WriteSafetensors(
    const std::string& path, const std::vector<TensorToWrite>& tensors,
    const std::map<std::string, std::string>& metadata);

// Writes a model: directory/model.safetensors, or, above max_shard_bytes,
// model-00001-of-0000N.safetensors with model.safetensors.index.json, filled in
// the order given. Gives the names of the files written. The directory is not
// synced.
absl::StatusOr<std::vector<std::string>> WriteSafetensorsModel(
    const std::string& directory, const std::vector<TensorToWrite>& tensors,
    const std::map<std::string, std::string>& metadata,
    int64_t max_shard_bytes = 5'000'000'000);

}  // namespace qlora
