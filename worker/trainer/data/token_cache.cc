#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/data/tokenized.h"

namespace qlora::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Raised when the same input gives other tokens or another file layout.
constexpr int kVersion = 3;
constexpr size_t kDigestSize = 64;

absl::StatusOr<std::string> CacheKey(const std::vector<DataFile>& files,
                                     const DataOptions& options,
                                     const text::ModelText* text) {
  json key = {{"version", kVersion},
              {"max_seq_len", options.max_seq_len},
              {"loss_on", static_cast<int>(options.loss_on)},
              {"on_bad_record", static_cast<int>(options.on_bad_record)},
              {"on_too_long", static_cast<int>(options.on_too_long)},
              {"vocab_size", options.vocab_size},
              {"now", absl::ToUnixSeconds(options.now)}};
  for (const DataFile& file : files) {
    ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(file.path));
    key["files"].push_back({file.name, static_cast<int>(file.format), digest});
  }
  if (text != nullptr) {
    ASSIGN_OR_RETURN(
        key["tokenizer"],
        Sha256OfFile(text->tokenizer->directory() + "/tokenizer.json"));
    key["tokenizer_config"] = Sha256Hex(text->tokenizer_config);
    key["chat_template"] = Sha256Hex(text->chat_template_source);
  }
  return Sha256Hex(
      key.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

template <typename T>
std::string_view Bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()),
          values.size() * sizeof(T)};
}

std::string Header(const Tokenized& data) {
  const DatasetStats& stats = data.stats;
  return json({{"offsets", data.documents.offsets.size()},
               {"record_ends", data.record_ends.size()},
               {"records", stats.records},
               {"bad", stats.bad},
               {"truncated", stats.truncated},
               {"split", stats.split},
               {"dropped", stats.dropped},
               {"bad_messages", stats.bad_messages}})
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

// What ranks that were killed had written of the file.
void RemoveParts(const fs::path& path) {
  const std::string start = path.filename().string() + ".tmp-";
  std::error_code error;
  fs::directory_iterator it(path.parent_path(), error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    if (!absl::StartsWith(it->path().filename().string(), start)) continue;
    unlink(it->path().c_str());
  }
}

absl::Status Store(const std::string& path, const Tokenized& data) {
  RemoveParts(path);
  const std::string header = Header(data);
  const std::vector<uint64_t> header_size = {header.size()};
  const std::array<std::string_view, 6> parts = {Bytes(header_size),
                                                 header,
                                                 Bytes(data.documents.offsets),
                                                 Bytes(data.record_ends),
                                                 Bytes(data.documents.tokens),
                                                 Bytes(data.documents.labels)};
  Sha256 hash;
  for (const std::string_view part : parts) hash.Update(part);
  ASSIGN_OR_RETURN(const std::unique_ptr<FileWriter> file,
                   FileWriter::Create(path));
  RETURN_IF_ERROR(file->Append(hash.HexDigest()));
  for (const std::string_view part : parts) {
    RETURN_IF_ERROR(file->Append(part));
  }
  return file->Commit().status();
}

template <typename T>
std::vector<T> ReadArray(std::istream& in, size_t size) {
  std::vector<T> out(size);
  in.read(reinterpret_cast<char*>(out.data()),
          static_cast<std::streamsize>(size * sizeof(T)));
  return out;
}

// The caller has checked the digest: it is what Store wrote, unless the disk
// fails between. Nothing then.
std::optional<Tokenized> Parse(std::istream& in) {
  const uint64_t size = ReadArray<uint64_t>(in, 1)[0];
  if (!in) return std::nullopt;
  const std::vector<char> text = ReadArray<char>(in, size);
  const json header = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!in || header.is_discarded()) return std::nullopt;
  Tokenized out;
  out.documents.offsets = ReadArray<int64_t>(in, header["offsets"]);
  out.record_ends = ReadArray<int64_t>(in, header["record_ends"]);
  if (!in || out.documents.offsets.empty()) return std::nullopt;
  const auto tokens = static_cast<size_t>(out.documents.offsets.back());
  out.documents.tokens = ReadArray<int32_t>(in, tokens);
  out.documents.labels = ReadArray<int32_t>(in, tokens);
  if (!in) return std::nullopt;
  out.stats.records = header["records"];
  out.stats.bad = header["bad"];
  out.stats.truncated = header["truncated"];
  out.stats.split = header["split"];
  out.stats.dropped = header["dropped"];
  out.stats.bad_messages = header["bad_messages"];
  return out;
}

// Of what is left of the stream.
std::string DigestOfRest(std::istream& in) {
  Sha256 hash;
  std::array<char, 1 << 16> part;
  while (in.read(part.data(), part.size()), in.gcount() > 0) {
    hash.Update({part.data(), static_cast<size_t>(in.gcount())});
  }
  return hash.HexDigest();
}

// NotFound if there is no file or not the one that was written.
absl::StatusOr<Tokenized> Load(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(path);
  std::string digest(kDigestSize, '\0');
  in.read(digest.data(), kDigestSize);
  if (DigestOfRest(in) != digest) {
    LogWarning("token cache is damaged and is made anew", {{"path", path}});
    return absl::NotFoundError(path);
  }
  in.clear();
  in.seekg(kDigestSize);
  std::optional<Tokenized> data = Parse(in);
  if (!data) return absl::NotFoundError(path);
  return *std::move(data);
}

// Held while one process of the node tokenizes; the kernel lets go of it when
// that process ends, however it does. The file goes with it: whoever waits for
// it then still has it, and another who makes it anew does work twice at worst.
class FileLock {
 public:
  explicit FileLock(std::string path)
      : path_(std::move(path)),
        fd_(open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    while (fd_ >= 0 && flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock() {
    if (fd_ < 0) return;
    unlink(path_.c_str());
    close(fd_);
  }

 private:
  const std::string path_;
  const int fd_;
};

}  // namespace

absl::StatusOr<Tokenized> TokenizeCached(const std::vector<DataFile>& files,
                                         const DataOptions& options,
                                         const text::ModelText* text) {
  if (options.cache_directory.empty()) return Tokenize(files, options, text);
  const absl::StatusOr<std::string> key = CacheKey(files, options, text);
  // A file that cannot be read: the reader says it better.
  if (!key.ok()) return Tokenize(files, options, text);
  const absl::Status made = CreateDirectories(options.cache_directory);
  const std::string path =
      absl::StrCat(options.cache_directory, "/", *key, ".tokens");
  const FileLock lock(path + ".lock");
  absl::StatusOr<Tokenized> cached = Load(path);
  if (cached.ok()) {
    utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
    return cached;
  }
  ASSIGN_OR_RETURN(Tokenized data, Tokenize(files, options, text));
  const absl::Status written = made.ok() ? Store(path, data) : made;
  if (!written.ok()) {
    LogWarning("token cache cannot be written", {{"error", written}});
  }
  return data;
}

}  // namespace qlora::trainer
