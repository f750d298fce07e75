#include "worker/agent/content_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
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

// Left free on the disk of the cache, or a twentieth of it if that is less: for
// what ranks write and for the spool.
constexpr int64_t kKeepFree = int64_t{1} << 30;

// Bytes that files in the directory may have, which have `total` now, so that
// the disk keeps its room.
int64_t LimitByDisk(const std::string& directory, int64_t total) {
  struct statvfs disk;
  if (::statvfs(directory.c_str(), &disk) != 0) return total;
  const auto block = static_cast<int64_t>(disk.f_frsize);
  const int64_t free = static_cast<int64_t>(disk.f_bavail) * block;
  const int64_t capacity = static_cast<int64_t>(disk.f_blocks) * block;
  return total + free - std::min(kKeepFree, capacity / 20);
}

// Gives a whole download its name.
absl::Status Publish(const v1::ArtifactFile& file, const std::string& part,
                     const std::string& path,
                     const Cancellation& cancellation) {
  ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(part, [&] {
                     return cancellation.cancelled();
                   }));
  if (digest != file.sha256()) {
    return absl::DataLossError(
        absl::StrCat(file.path(),
                     ": the artifact store sent content with "
                     "digest ",
                     digest, " instead of ", file.sha256()));
  }
  if (const absl::Status synced = SyncPath(part); !synced.ok()) {
    ::unlink(part.c_str());
    return synced;
  }
  // A rank must not be able to change what the name promises.
  if (::chmod(part.c_str(), 0444) != 0 ||
      ::rename(part.c_str(), path.c_str()) != 0) {
    return ErrnoToStatus(errno, path);
  }
  return absl::OkStatus();
}

// Makes `to` the same file as `from`, or a copy where links are not possible.
absl::Status LinkOrCopy(const std::string& from, const std::string& to,
                        const Cancellation& cancellation) {
  if (::link(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  if (errno == EEXIST || errno == ENOENT || errno == ENOSPC) {
    return ErrnoToStatus(errno, to);
  }
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
  EvictLocked(0);
}

void ContentCache::Trim() {
  MutexLock lock(&mu_);
  EvictLocked(0);
}

absl::Status ContentCache::Place(const v1::ArtifactFile& file, Check check,
                                 const std::string& destination,
                                 ArtifactClient& client,
                                 Cancellation& cancellation) {
  if (!IsSha256Hex(file.sha256())) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": \"", file.sha256(), "\" is no SHA-256 digest"));
  }
  RETURN_IF_ERROR(Hold(file.sha256(), cancellation));
  const absl::Status status =
      PlaceHeld(file, check, destination, client, cancellation);
  Release(file.sha256());
  return status;
}

absl::StatusOr<bool> ContentCache::HasHeld(
    const v1::ArtifactFile& file, Check check,
    const Cancellation& cancellation) const {
  const std::string path = PathOf(file.sha256());
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return false;
  bool sound = info.st_size == file.size_bytes();
  if (sound && check == Check::kDigest) {
    const auto digest =
        Sha256OfFile(path, [&] { return cancellation.cancelled(); });
    if (absl::IsCancelled(digest.status())) return digest.status();
    sound = digest.ok() && *digest == file.sha256();
  }
  if (!sound) {
    LogWarning("a cached file is damaged and is downloaded anew",
               {{"file", file.path()}, {"path", path}});
    ::unlink(path.c_str());
  }
  return sound;
}

absl::Status ContentCache::PlaceHeld(const v1::ArtifactFile& file, Check check,
                                     const std::string& destination,
                                     ArtifactClient& client,
                                     Cancellation& cancellation) {
  const std::string path = PathOf(file.sha256());
  ASSIGN_OR_RETURN(const bool has, HasHeld(file, check, cancellation));
  if (!has) {
    {
      MutexLock lock(&mu_);
      EvictLocked(file.size_bytes());
    }
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
  absl::Status status = client.Download(file.sha256(), part, cancellation);
  if (status.ok()) status = Publish(file, part, path, cancellation);
  // A download that broke off goes on from its part. What is wrong, or was not
  // synced, is not used, and a full disk needs the room.
  if (absl::IsDataLoss(status) || absl::IsResourceExhausted(status)) {
    ::unlink(part.c_str());
  }
  return status;
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

void ContentCache::EvictLocked(int64_t needed) {
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
  const int64_t limit =
      std::min(max_bytes_, LimitByDisk(directory_, total)) - needed;
  for (const Entry& entry : unused) {
    if (total <= limit) return;
    if (::unlink(entry.path.c_str()) == 0) total -= entry.bytes;
  }
}

}  // namespace qlora::agent
