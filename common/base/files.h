// Files and directories with the durability that the stores need. Functions
// that change something say in their name or comment whether they sync.
// All may be called from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/sha256.h"

namespace qlora {

// Errors of all: NotFound (no such file), ResourceExhausted (disk full or
// quota), PermissionDenied, else Unavailable; the message names the path.
// InvalidArgument for a file of more than max_bytes, of which no more is read:
// whoever reads what others sent sets it.
absl::StatusOr<std::string> ReadFile(
    const std::string& path,
    size_t max_bytes = std::numeric_limits<size_t>::max());

// Writes path.tmp-<random>, syncs it, renames it to path, syncs the directory.
absl::Status WriteFileAtomically(const std::string& path,
                                 std::string_view content);

// Writes a file piecewise under a temporary name beside it (O_EXCL), hashing
// what passes. Used by one thread.
class FileWriter {
 public:
  // Preallocates size_hint bytes where the file system can.
  static absl::StatusOr<std::unique_ptr<FileWriter>> Create(
      const std::string& path, int64_t size_hint = 0);
  // Removes the temporary file unless Commit succeeded.
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  absl::Status Append(std::string_view bytes);
  // Syncs the file and renames it to its path; does not sync the directory.
  // Gives the SHA-256 of the content. After any error the file is abandoned.
  absl::StatusOr<std::string> Commit();
  int64_t size() const { return size_; }

 private:
  FileWriter(std::string path, std::string temporary, int fd);
  const std::string path_;
  const std::string temporary_;
  int fd_;
  int64_t size_ = 0;
  Sha256 hash_;
};

// A directory that appears whole or not at all: written beside its final path,
// as path.tmp-<random>, and renamed. Used by one thread.
class DirectoryWriter {
 public:
  // The parent must exist.
  static absl::StatusOr<std::unique_ptr<DirectoryWriter>> Create(
      const std::string& path);
  // Removes what was written unless Commit succeeded.
  ~DirectoryWriter();
  DirectoryWriter(const DirectoryWriter&) = delete;
  DirectoryWriter& operator=(const DirectoryWriter&) = delete;

  // Where to write. Files must be synced by whoever writes them.
  const std::string& directory() const { return temporary_; }
  // Syncs the directory, renames it, syncs the parent. An older directory at
  // the path is replaced: moved aside to a temporary name first, then removed.
  absl::Status Commit();

 private:
  DirectoryWriter(std::string path, std::string temporary);
  const std::string path_;
  const std::string temporary_;
  bool committed_ = false;
};

// Copies a file's content, syncs the copy, gives its SHA-256; until then there
// is nothing new at `to`. NotFound names the source; Cancelled once `cancelled`
// (asked again for each MiB; null: never) says true.
absl::StatusOr<std::string> CopyFileSynced(
    const std::string& from, const std::string& to,
    const std::function<bool()>& cancelled = nullptr);

// Creates path and its parents.
absl::Status CreateDirectories(const std::string& path);

// Removes a file or a whole directory; absent is fine. Does not follow links.
absl::Status RemoveRecursively(const std::string& path);

// fsync of a file or directory.
absl::Status SyncPath(const std::string& path);

// Regular files below directory and links to such, relative, sorted, with '/'.
// Links to directories are not followed.
absl::StatusOr<std::vector<std::string>> ListFilesRecursively(
    const std::string& directory);

// True if path, after resolving links, lies in one of the roots (also
// resolved). Both must exist.
bool IsBeneathOneOf(const std::string& path,
                    const std::vector<std::string>& roots);

// A relative path without "..", empty parts, backslash, NUL: safe below a root.
bool IsSafeRelativePath(std::string_view path);

// Turns errno into a Status as described above.
absl::Status ErrnoToStatus(int error, std::string_view what);

// An exclusive lock on a directory (flock on <directory>/LOCK), held until
// destruction or process end.
class DirectoryLock {
 public:
  // FailedPrecondition naming the holder's pid if another process has it.
  static absl::StatusOr<DirectoryLock> Acquire(const std::string& directory);
  DirectoryLock(DirectoryLock&& other) noexcept;
  DirectoryLock& operator=(DirectoryLock&& other) noexcept;
  ~DirectoryLock();

 private:
  explicit DirectoryLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace qlora
