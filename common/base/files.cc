#include "common/base/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <random>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace qlora {
namespace fs = std::filesystem;

namespace {

std::string RandomSuffix() {
  std::random_device random;
  return absl::StrCat(absl::Hex(random(), absl::kZeroPad8));
}

absl::Status FromErrorCode(const std::error_code& error,
                           std::string_view what) {
  return ErrnoToStatus(error.value(), what);
}

}  // namespace

absl::Status ErrnoToStatus(int error, std::string_view what) {
  const std::string message = absl::StrCat(
      absl::string_view(what.data(), what.size()), ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     size_t max_bytes) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoToStatus(errno, path);
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof(buffer));
    if (n == 0) return content;
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoToStatus(errno, path);
    }
    if (static_cast<size_t>(n) > max_bytes - content.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": has more than ", max_bytes, " bytes, which are too many"));
    }
    content.append(buffer, static_cast<size_t>(n));
  }
}

absl::Status SyncPath(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoToStatus(errno, path);
  if (::fsync(fd.get()) != 0) return ErrnoToStatus(errno, path);
  return absl::OkStatus();
}

FileWriter::FileWriter(std::string path, std::string temporary, int fd)
    : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}

absl::StatusOr<std::unique_ptr<FileWriter>> FileWriter::Create(
    const std::string& path, int64_t size_hint) {
  const std::string temporary = absl::StrCat(path, ".tmp-", RandomSuffix());
  const int fd =
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoToStatus(errno, temporary);
  std::unique_ptr<FileWriter> writer(new FileWriter(path, temporary, fd));
  if (size_hint > 0 &&
      ::fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, size_hint) != 0 &&
      errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
    return ErrnoToStatus(errno, path);
  }
  return writer;
}

FileWriter::~FileWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

absl::Status FileWriter::Append(std::string_view bytes) {
  RETURN_IF_ERROR(WriteAll(fd_, bytes, path_));
  hash_.Update(bytes);
  size_ += static_cast<int64_t>(bytes.size());
  return absl::OkStatus();
}

absl::StatusOr<std::string> FileWriter::Commit() {
  if (::fsync(fd_) != 0) return ErrnoToStatus(errno, path_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    return ErrnoToStatus(errno, path_);
  }
  ::close(std::exchange(fd_, -1));
  return hash_.HexDigest();
}

absl::Status WriteFileAtomically(const std::string& path,
                                 std::string_view content) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileWriter> writer,
                   FileWriter::Create(path));
  RETURN_IF_ERROR(writer->Append(content));
  RETURN_IF_ERROR(writer->Commit().status());
  const std::string parent = fs::path(path).parent_path().string();
  return SyncPath(parent.empty() ? "." : parent);
}

DirectoryWriter::DirectoryWriter(std::string path, std::string temporary)
    : path_(std::move(path)), temporary_(std::move(temporary)) {}

absl::StatusOr<std::unique_ptr<DirectoryWriter>> DirectoryWriter::Create(
    const std::string& path) {
  const std::string temporary = absl::StrCat(path, ".tmp-", RandomSuffix());
  if (::mkdir(temporary.c_str(), 0755) != 0) {
    return ErrnoToStatus(errno, temporary);
  }
  return std::unique_ptr<DirectoryWriter>(new DirectoryWriter(path, temporary));
}

DirectoryWriter::~DirectoryWriter() {
  if (!committed_) RemoveRecursively(temporary_).IgnoreError();
}

absl::Status DirectoryWriter::Commit() {
  RETURN_IF_ERROR(SyncPath(temporary_));
  // Moved aside whole: a removal that is interrupted leaves a part.
  const std::string old = temporary_ + "-old";
  const bool had_old = ::rename(path_.c_str(), old.c_str()) == 0;
  if (!had_old && errno != ENOENT) return ErrnoToStatus(errno, path_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const absl::Status status = ErrnoToStatus(errno, path_);
    if (had_old) ::rename(old.c_str(), path_.c_str());
    return status;
  }
  committed_ = true;
  const std::string parent = fs::path(path_).parent_path().string();
  RETURN_IF_ERROR(SyncPath(parent.empty() ? "." : parent));
  return had_old ? RemoveRecursively(old) : absl::OkStatus();
}

absl::StatusOr<std::string> CopyFileSynced(
    const std::string& from, const std::string& to,
    const std::function<bool()>& cancelled) {
  const UniqueFd fd(::open(from.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoToStatus(errno, from);
  ASSIGN_OR_RETURN(const std::unique_ptr<FileWriter> writer,
                   FileWriter::Create(to));
  std::string buffer(1 << 20, '\0');
  while (true) {
    if (cancelled && cancelled()) return absl::CancelledError("cancelled");
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n == 0) return writer->Commit();
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoToStatus(errno, from);
    }
    RETURN_IF_ERROR(writer->Append(
        std::string_view(buffer).substr(0, static_cast<size_t>(n))));
  }
}

absl::Status CreateDirectories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  return error ? FromErrorCode(error, path) : absl::OkStatus();
}

absl::Status RemoveRecursively(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  return error ? FromErrorCode(error, path) : absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ListFilesRecursively(
    const std::string& directory) {
  std::error_code error;
  fs::recursive_directory_iterator it(directory, error);
  if (error) return FromErrorCode(error, directory);
  std::vector<std::string> files;
  while (it != fs::recursive_directory_iterator()) {
    std::error_code broken_link;
    if (it->is_regular_file(broken_link)) {
      files.push_back(
          it->path().lexically_relative(directory).generic_string());
    }
    // After an error it is at the end.
    it.increment(error);
  }
  if (error) return FromErrorCode(error, directory);
  std::sort(files.begin(), files.end());
  return files;
}

bool IsBeneathOneOf(const std::string& path,
                    const std::vector<std::string>& roots) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) return false;
  return std::any_of(roots.begin(), roots.end(), [&](const std::string& root) {
    std::error_code root_error;
    const fs::path real_root = fs::canonical(root, root_error);
    if (root_error) return false;
    const auto [root_end, unused] = std::mismatch(
        real_root.begin(), real_root.end(), real.begin(), real.end());
    return root_end == real_root.end();
  });
}

bool IsSafeRelativePath(std::string_view path) {
  if (path.empty() || path.size() > 4096 || path.front() == '/') return false;
  if (path.find('\\') != path.npos || path.find('\0') != path.npos)
    return false;
  for (const absl::string_view part :
       absl::StrSplit(absl::string_view(path.data(), path.size()), '/')) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

absl::StatusOr<DirectoryLock> DirectoryLock::Acquire(
    const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/LOCK");
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoToStatus(errno, path);
  DirectoryLock lock(fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoToStatus(errno, path);
    char pid[32] = {};
    if (::pread(fd, pid, sizeof(pid) - 1, 0) < 0) pid[0] = '\0';
    return absl::FailedPreconditionError(
        absl::StrCat(directory, " is in use by another process (pid ", pid,
                     "); stop it or choose another data directory"));
  }
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, pid.data(), pid.size(), 0) < 0) {
    return ErrnoToStatus(errno, path);
  }
  return lock;
}

DirectoryLock::DirectoryLock(DirectoryLock&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)) {}

DirectoryLock& DirectoryLock::operator=(DirectoryLock&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

DirectoryLock::~DirectoryLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace qlora
