#include "worker/agent/content_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"

namespace qlora::agent {
namespace fs = std::filesystem;

namespace {

// How soon one that waits for another thread's download heeds its own
// cancellation.
constexpr absl::Duration kCancelPoll = absl::Milliseconds(50);

// Makes `to` the same file as `from`, or a copy where links are not possible.
absl::Status LinkOrCopy(const std::string& from, const std::string& to,
                        const Cancellation& cancellation) {
  if (::link(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  if (errno == EEXIST || errno == ENOENT) return ErrnoToStatus(errno, to);
  return CopyFileSynced(from, to, [&] { return cancellation.cancelled(); })
      .status();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ContentCache>> ContentCache::Open(
    std::string directory, int64_t max_bytes) {
  RETURN_IF_ERROR(CreateDirectories(directory));
  return std::unique_ptr<ContentCache>(
      new ContentCache(std::move(directory), max_bytes));
}

std::string ContentCache::PathOf(const std::string& sha256) const {
  return absl::StrCat(directory_, "/", sha256.substr(0, 2), "/", sha256);
}

absl::Status ContentCache::Hold(const std::string& sha256,
                                const Cancellation& cancellation) {
  MutexLock lock(&mu_);
  while (!held_.insert(sha256).second) {
    if (cancellation.cancelled()) return absl::CancelledError("cancelled");
    released_.WaitWithTimeout(&mu_, kCancelPoll);
  }
  return absl::OkStatus();
}

void ContentCache::Release(const std::string& sha256) {
  MutexLock lock(&mu_);
  held_.erase(sha256);
  released_.SignalAll();
  EvictLocked();
}

absl::Status ContentCache::Place(const v1::ArtifactFile& file,
                                 const std::string& destination,
                                 ArtifactClient& client,
                                 Cancellation& cancellation) {
  if (!IsSha256Hex(file.sha256())) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": \"", file.sha256(), "\" is no SHA-256 digest"));
  }
  RETURN_IF_ERROR(Hold(file.sha256(), cancellation));
  const absl::Status status =
      PlaceHeld(file, destination, client, cancellation);
  Release(file.sha256());
  return status;
}

absl::Status ContentCache::PlaceHeld(const v1::ArtifactFile& file,
                                     const std::string& destination,
                                     ArtifactClient& client,
                                     Cancellation& cancellation) {
  const std::string path = PathOf(file.sha256());
  if (::access(path.c_str(), R_OK) != 0) {
    RETURN_IF_ERROR(Fetch(file, client, cancellation));
  }
  // The time of the last use decides what is evicted.
  ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
  return LinkOrCopy(path, destination, cancellation);
}

absl::Status ContentCache::Fetch(const v1::ArtifactFile& file,
                                 ArtifactClient& client,
                                 Cancellation& cancellation) {
  const std::string path = PathOf(file.sha256());
  const std::string part = path + ".part";
  RETURN_IF_ERROR(CreateDirectories(fs::path(path).parent_path().string()));
  RETURN_IF_ERROR(client.Download(file.sha256(), part, cancellation));
  ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(part, [&] {
                     return cancellation.cancelled();
                   }));
  if (digest != file.sha256()) {
    RETURN_IF_ERROR(RemoveRecursively(part));
    return absl::DataLossError(
        absl::StrCat(file.path(),
                     ": the artifact store sent content with "
                     "digest ",
                     digest, " instead of ", file.sha256()));
  }
  RETURN_IF_ERROR(SyncPath(part));
  // A rank must not be able to change what the name promises.
  if (::chmod(part.c_str(), 0444) != 0 ||
      ::rename(part.c_str(), path.c_str()) != 0) {
    return ErrnoToStatus(errno, path);
  }
  return absl::OkStatus();
}

absl::Status ContentCache::Adopt(const std::string& path,
                                 const std::string& sha256,
                                 Cancellation& cancellation) {
  const std::string cached = PathOf(sha256);
  RETURN_IF_ERROR(CreateDirectories(fs::path(cached).parent_path().string()));
  RETURN_IF_ERROR(Hold(sha256, cancellation));
  absl::Status status;
  if (::access(cached.c_str(), F_OK) != 0) {
    status = LinkOrCopy(path, cached, cancellation);
    ::chmod(cached.c_str(), 0444);
  }
  Release(sha256);
  return status;
}

void ContentCache::EvictLocked() {
  struct Entry {
    int64_t used;
    int64_t bytes;
    std::string path;
  };
  std::vector<Entry> unused;
  int64_t total = 0;
  const auto names = ListFilesRecursively(directory_);
  if (!names.ok()) {
    LogWarning("nothing is evicted from the cache",
               {{"error", names.status()}});
    return;
  }
  for (const std::string& name : *names) {
    const fs::path path = fs::path(directory_) / name;
    struct stat info;
    if (::lstat(path.c_str(), &info) != 0) continue;
    total += info.st_size;
    const std::string digest = path.filename().string().substr(0, 64);
    if (info.st_nlink > 1 || held_.contains(digest)) continue;
    unused.push_back({info.st_mtim.tv_sec, info.st_size, path.string()});
  }
  std::sort(unused.begin(), unused.end(),
            [](const Entry& a, const Entry& b) { return a.used < b.used; });
  for (const Entry& entry : unused) {
    if (total <= max_bytes_) return;
    if (::unlink(entry.path.c_str()) == 0) total -= entry.bytes;
  }
}

}  // namespace qlora::agent
