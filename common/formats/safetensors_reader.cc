#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/formats/safetensors.h"
#include "common/formats/safetensors_header.h"

namespace qlora {
namespace {

using formats_internal::Header;
using formats_internal::HeaderTensor;
using formats_internal::kMaxHeaderBytes;
using formats_internal::ParseHeader;
using formats_internal::Quoted;

// Far above the largest known index (9 MB).
constexpr uint64_t kMaxIndexBytes = 32u << 20;

// Elements that are converted before their pages are let go.
constexpr size_t kElementsAtOnce = 4 << 20;

static_assert(std::endian::native == std::endian::little);

// A whole file mapped for reading.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }
  const uint8_t* data() const { return static_cast<const uint8_t*>(data_); }
  uint64_t size() const { return size_; }

 private:
  MappedFile(void* data, uint64_t size) : data_(data), size_(size) {}
  void* data_;
  uint64_t size_;
};

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ErrnoToStatus(errno, path);
  struct stat info = {};
  absl::Status status;
  void* data = nullptr;
  if (::fstat(fd, &info) != 0) {
    status = ErrnoToStatus(errno, path);
  } else if (!S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(
        absl::StrCat(path, ": is not a regular file"));
  } else if (info.st_size < 8) {
    status = absl::InvalidArgumentError(absl::StrCat(
        path, ": ", info.st_size, " bytes are too few for a safetensors file"));
  } else {
    data = ::mmap(nullptr, info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) status = ErrnoToStatus(errno, path);
  }
  ::close(fd);
  RETURN_IF_ERROR(status);
  return MappedFile(data, info.st_size);
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000u |
                                ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude < 0x0400u) {  // zero, subnormal: exact multiples of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

template <typename Stored, typename Convert>
void ConvertAll(const uint8_t* data, std::span<float> out, Convert convert) {
  for (size_t i = 0; i < out.size(); ++i) {
    Stored value;  // the mapping need not be aligned
    std::memcpy(&value, data + i * sizeof(Stored), sizeof(Stored));
    out[i] = convert(value);
  }
}

absl::Status ConvertToFloat32(const TensorInfo& info, const uint8_t* data,
                              std::span<float> out) {
  switch (info.dtype) {
    case TensorDtype::kF32:
      if (!out.empty()) std::memcpy(out.data(), data, out.size_bytes());
      return absl::OkStatus();
    case TensorDtype::kBF16:
      ConvertAll<uint16_t>(data, out, [](uint16_t value) {
        return std::bit_cast<float>(uint32_t{value} << 16);
      });
      return absl::OkStatus();
    case TensorDtype::kF16:
      ConvertAll<uint16_t>(data, out, HalfToFloat);
      return absl::OkStatus();
    case TensorDtype::kF64:
      ConvertAll<double>(
          data, out, [](double value) { return static_cast<float>(value); });
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Quoted(info.name), " has dtype ",
          std::string(DtypeName(info.dtype)),
          "; a floating-point one is needed (F32, F16, BF16 or F64)"));
  }
}

// Drops the whole pages among these from the process. The kernel's cache keeps
// them, but mapped they would count as this process's memory.
void LetGo(std::span<const uint8_t> mapped) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(mapped.data());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + mapped.size()) / page * page;
  if (first < last) {
    ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }
}

// Where a tensor's bytes are.
struct Place {
  TensorInfo info;
  const uint8_t* data;
};

// Both kinds of model: tensors of one or several mapped files.
class MappedReader final : public SafetensorsReader {
 public:
  MappedReader(std::string path, std::vector<MappedFile> files,
               std::vector<Place> places,
               std::map<std::string, std::string> metadata)
      : path_(std::move(path)),
        files_(std::move(files)),
        metadata_(std::move(metadata)) {
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
      return a.info.name < b.info.name;
    });
    infos_.reserve(places.size());
    data_.reserve(places.size());
    for (Place& place : places) {
      infos_.push_back(std::move(place.info));
      data_.push_back(place.data);
    }
  }

  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const std::map<std::string, std::string>& metadata() const override {
    return metadata_;
  }

  const TensorInfo* Find(std::string_view name) const override {
    const auto it =
        std::lower_bound(infos_.begin(), infos_.end(), name,
                         [](const TensorInfo& info, std::string_view n) {
                           return info.name < n;
                         });
    return it != infos_.end() && it->name == name ? &*it : nullptr;
  }

  absl::StatusOr<std::span<const uint8_t>> Data(
      std::string_view name) const override {
    const TensorInfo* info = Find(name);
    if (info == nullptr) {
      return absl::NotFoundError(
          absl::StrCat(path_, ": there is no tensor ", Quoted(name)));
    }
    return std::span<const uint8_t>(data_[info - infos_.data()],
                                    static_cast<size_t>(info->size_bytes));
  }

  absl::Status ReadFloat32(std::string_view name,
                           std::span<float> out) const override {
    ASSIGN_OR_RETURN(const std::span<const uint8_t> data, Data(name));
    const TensorInfo& info = *Find(name);
    if (static_cast<int64_t>(out.size()) != info.num_elements()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor ", Quoted(name), " has ",
                       info.num_elements(), " elements, not ", out.size()));
    }
    const auto element = static_cast<size_t>(DtypeSize(info.dtype));
    for (size_t begin = 0; begin == 0 || begin < out.size();
         begin += kElementsAtOnce) {
      const size_t count = std::min(kElementsAtOnce, out.size() - begin);
      const auto part = data.subspan(begin * element, count * element);
      const absl::Status status =
          ConvertToFloat32(info, part.data(), out.subspan(begin, count));
      if (!status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat(path_, ": ", status.message()));
      }
      LetGo(part);
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const std::vector<MappedFile> files_;
  const std::map<std::string, std::string> metadata_;
  // Parallel, sorted by name.
  std::vector<TensorInfo> infos_;
  std::vector<const uint8_t*> data_;
};

struct OpenedFile {
  MappedFile file;
  Header header;
  const uint8_t* data;
};

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(path, ": ", status.message()));
}

absl::StatusOr<OpenedFile> OpenFile(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  if (length > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the header claims ", length,
                     " bytes, more than the format's limit of ",
                     kMaxHeaderBytes, "; is this a safetensors file?"));
  }
  if (length > file.size() - 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the header claims ", length,
                     " bytes, past the end of the file (", file.size(),
                     " bytes); the file is cut short or no safetensors"));
  }
  const std::string_view json(reinterpret_cast<const char*>(file.data()) + 8,
                              length);
  absl::StatusOr<Header> header = ParseHeader(json, file.size() - 8 - length);
  if (!header.ok()) return InFile(path, header.status());
  const uint8_t* data = file.data() + 8 + length;
  return OpenedFile{std::move(file), *std::move(header), data};
}

using WeightMap = std::map<std::string, std::string>;

absl::StatusOr<WeightMap> ReadIndex(const std::string& path) {
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) return ErrnoToStatus(error.value(), path);
  if (size > kMaxIndexBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", size, " bytes, more than the limit of ", kMaxIndexBytes));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("weight_map") ||
      !json["weight_map"].is_object() || json["weight_map"].empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": is not JSON with an object 'weight_map' that names shards"));
  }
  WeightMap map;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    if (!shard.is_string() ||
        !IsSafeRelativePath(shard.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": the shard of tensor ", Quoted(name),
                       " is no file name inside the model's directory"));
    }
    map[name] = shard.get<std::string>();
  }
  return map;
}

// Collects the tensors that the index assigns to one shard.
absl::Status TakeShard(const std::string& path, const std::string& shard,
                       const WeightMap& weight_map, OpenedFile& opened,
                       std::vector<Place>& places) {
  std::unordered_map<std::string_view, HeaderTensor*> present;
  for (HeaderTensor& tensor : opened.header.tensors) {
    present[tensor.info.name] = &tensor;
  }
  for (const auto& [name, of_shard] : weight_map) {
    if (of_shard != shard) continue;
    const auto it = present.find(name);
    if (it == present.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Quoted(name),
                       " is missing, though the index says it is here"));
    }
    places.push_back({it->second->info, opened.data + it->second->begin});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SafetensorsReader>> OpenSharded(
    const std::string& directory, const std::string& index_path) {
  ASSIGN_OR_RETURN(const WeightMap weight_map, ReadIndex(index_path));
  std::vector<std::string> shards;
  for (const auto& [name, shard] : weight_map) shards.push_back(shard);
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  std::vector<MappedFile> files;
  std::vector<Place> places;
  std::map<std::string, std::string> metadata;
  for (const std::string& shard : shards) {
    const std::string path = absl::StrCat(directory, "/", shard);
    absl::StatusOr<OpenedFile> opened = OpenFile(path);
    if (absl::IsNotFound(opened.status())) {
      return absl::NotFoundError(absl::StrCat(path, ": this shard, named in ",
                                              index_path, ", does not exist"));
    }
    RETURN_IF_ERROR(opened.status());
    RETURN_IF_ERROR(TakeShard(path, shard, weight_map, *opened, places));
    metadata.merge(opened->header.metadata);
    files.push_back(std::move(opened->file));
  }
  return std::make_unique<MappedReader>(directory, std::move(files),
                                        std::move(places), std::move(metadata));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsReader>> SafetensorsReader::Open(
    const std::string& path) {
  ASSIGN_OR_RETURN(OpenedFile opened, OpenFile(path));
  std::vector<Place> places;
  places.reserve(opened.header.tensors.size());
  for (HeaderTensor& tensor : opened.header.tensors) {
    places.push_back({std::move(tensor.info), opened.data + tensor.begin});
  }
  std::vector<MappedFile> files;
  files.push_back(std::move(opened.file));
  return std::make_unique<MappedReader>(path, std::move(files),
                                        std::move(places),
                                        std::move(opened.header.metadata));
}

absl::StatusOr<std::unique_ptr<SafetensorsReader>> SafetensorsReader::OpenModel(
    const std::string& directory) {
  const std::string single = absl::StrCat(directory, "/model.safetensors");
  const std::string index = absl::StrCat(single, ".index.json");
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    return absl::NotFoundError(
        absl::StrCat(directory, ": there is no such model directory"));
  }
  if (std::filesystem::exists(single, error)) return Open(single);
  if (std::filesystem::exists(index, error)) {
    return OpenSharded(directory, index);
  }
  return absl::NotFoundError(absl::StrCat(
      directory, ": neither model.safetensors nor ",
      "model.safetensors.index.json is there; only safetensors are read"));
}

}  // namespace qlora
