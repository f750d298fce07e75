#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/data/tokenized.h"

namespace qlora::trainer {
namespace {

using nlohmann::json;

// Raised when the same input gives other tokens or another file layout.
constexpr int kVersion = 1;
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
void AppendArray(const std::vector<T>& values, std::string* out) {
  out->append(reinterpret_cast<const char*>(values.data()),
              values.size() * sizeof(T));
}

std::string Serialize(const Tokenized& data) {
  const DatasetStats& stats = data.stats;
  const std::string header =
      json({{"offsets", data.documents.offsets.size()},
            {"record_ends", data.record_ends.size()},
            {"records", stats.records},
            {"bad", stats.bad},
            {"truncated", stats.truncated},
            {"split", stats.split},
            {"dropped", stats.dropped},
            {"bad_messages", stats.bad_messages}})
          .dump(-1, ' ', false, json::error_handler_t::replace);
  std::string body;
  AppendArray(std::vector<uint64_t>{header.size()}, &body);
  body += header;
  AppendArray(data.documents.offsets, &body);
  AppendArray(data.record_ends, &body);
  AppendArray(data.documents.tokens, &body);
  AppendArray(data.documents.labels, &body);
  return Sha256Hex(body) + body;
}

// The caller has checked the digest: the rest is what Serialize wrote.
class Parser {
 public:
  explicit Parser(std::string_view in) : in_(in) {}

  template <typename T>
  std::vector<T> Array(size_t size) {
    std::vector<T> out(size);
    const std::string_view bytes = Text(size * sizeof(T));
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }
  std::string_view Text(size_t size) {
    const std::string_view out = in_.substr(0, size);
    in_.remove_prefix(out.size());
    return out;
  }

 private:
  std::string_view in_;
};

Tokenized Parse(std::string_view body) {
  Parser parser(body);
  const json header = json::parse(parser.Text(parser.Array<uint64_t>(1)[0]));
  Tokenized out;
  out.documents.offsets = parser.Array<int64_t>(header["offsets"]);
  out.record_ends = parser.Array<int64_t>(header["record_ends"]);
  const auto tokens = static_cast<size_t>(out.documents.offsets.back());
  out.documents.tokens = parser.Array<int32_t>(tokens);
  out.documents.labels = parser.Array<int32_t>(tokens);
  out.stats.records = header["records"];
  out.stats.bad = header["bad"];
  out.stats.truncated = header["truncated"];
  out.stats.split = header["split"];
  out.stats.dropped = header["dropped"];
  out.stats.bad_messages = header["bad_messages"];
  return out;
}

// NotFound if there is no file or not the one that was written.
absl::StatusOr<Tokenized> Load(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  const std::string_view all = content;
  if (all.size() < kDigestSize ||
      Sha256Hex(all.substr(kDigestSize)) != all.substr(0, kDigestSize)) {
    LogWarning("token cache is damaged and is made anew", {{"path", path}});
    return absl::NotFoundError(path);
  }
  return Parse(all.substr(kDigestSize));
}

// Held while one process of the node tokenizes; the kernel lets go of it when
// that process ends, however it does.
class FileLock {
 public:
  explicit FileLock(const std::string& path)
      : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    while (fd_ >= 0 && flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock() {
    if (fd_ >= 0) close(fd_);
  }

 private:
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
  if (cached.ok()) return cached;
  ASSIGN_OR_RETURN(Tokenized data, Tokenize(files, options, text));
  const absl::Status written =
      made.ok() ? WriteFileAtomically(path, Serialize(data)) : made;
  if (!written.ok()) {
    LogWarning("token cache cannot be written", {{"error", written}});
  }
  return data;
}

}  // namespace qlora::trainer
