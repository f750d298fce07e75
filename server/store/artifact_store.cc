#include "server/store/artifact_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace qlora::server {
namespace {

constexpr size_t kReadBytes = 1 << 20;

absl::Status CheckDigest(const std::string& sha256) {
  if (IsSha256Hex(sha256)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", sha256, "\" is no SHA-256: 64 lower-case hex digits"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ArtifactStore>> ArtifactStore::Open(
    const std::string& directory) {
  for (const char* part : {"/objects", "/partial", "/corrupt"}) {
    RETURN_IF_ERROR(CreateDirectories(absl::StrCat(directory, part)));
  }
  return std::unique_ptr<ArtifactStore>(new ArtifactStore(directory));
}

std::string ArtifactStore::ObjectPath(const std::string& sha256) const {
  return absl::StrCat(directory_, "/objects/", sha256.substr(0, 2), "/",
                      sha256.substr(2));
}

std::string ArtifactStore::PartialPath(const std::string& sha256) const {
  return absl::StrCat(directory_, "/partial/", sha256);
}

absl::StatusOr<ArtifactStore::Info> ArtifactStore::Stat(
    const std::string& sha256) {
  RETURN_IF_ERROR(CheckDigest(sha256));
  struct stat info;
  MutexLock lock(&mu_);
  const std::string object = ObjectPath(sha256);
  if (::stat(object.c_str(), &info) == 0) {
    // Its age counts from now on.
    ::utimensat(AT_FDCWD, object.c_str(), nullptr, 0);
    return Info{true, info.st_size};
  }
  if (::stat(PartialPath(sha256).c_str(), &info) == 0) {
    return Info{false, info.st_size};
  }
  return Info{};
}

absl::StatusOr<std::string> ArtifactStore::PathOf(const std::string& sha256) {
  ASSIGN_OR_RETURN(const Info info, Stat(sha256));
  if (!info.complete) {
    return absl::NotFoundError(absl::StrCat("no artifact ", sha256));
  }
  return ObjectPath(sha256);
}

absl::StatusOr<std::unique_ptr<ArtifactStore::Upload>>
ArtifactStore::BeginUpload(const std::string& sha256, int64_t total_bytes) {
  ASSIGN_OR_RETURN(const Info info, Stat(sha256));
  if (total_bytes < 0) {
    return absl::InvalidArgumentError("total_bytes is negative");
  }
  std::unique_ptr<Upload> upload(new Upload(this, sha256, total_bytes));
  if (info.complete) {
    upload->complete_ = true;
    return upload;
  }
  {
    MutexLock lock(&mu_);
    if (!uploading_.insert(sha256).second) {
      upload->complete_ = true;  // It owns nothing.
      return absl::UnavailableError(
          absl::StrCat("artifact ", sha256, " is being uploaded already"));
    }
  }
  RETURN_IF_ERROR(upload->Resume());
  return upload;
}

void ArtifactStore::EndUpload(const std::string& sha256) {
  MutexLock lock(&mu_);
  uploading_.erase(sha256);
}

void ArtifactStore::Quarantine(const std::string& sha256) {
  MutexLock lock(&mu_);
  const std::string aside = absl::StrCat(directory_, "/corrupt/", sha256);
  ::rename(ObjectPath(sha256).c_str(), aside.c_str());
  LogError("artifact is corrupt", {{"sha256", sha256}, {"moved_to", aside}});
}

absl::Status ArtifactStore::Upload::Resume() {
  const std::string path = store_->PartialPath(sha256_);
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) return ErrnoToStatus(errno, path);
  std::vector<char> buffer(kReadBytes);
  while (true) {
    const ssize_t n = ::pread(fd_, buffer.data(), buffer.size(), size_);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoToStatus(errno, path);
    if (n == 0) return absl::OkStatus();
    hash_.Update({buffer.data(), static_cast<size_t>(n)});
    size_ += n;
  }
}

absl::Status ArtifactStore::Upload::Append(int64_t offset,
                                           std::string_view data) {
  if (complete_) return absl::OkStatus();
  if (offset != size_) {
    return absl::OutOfRangeError(absl::StrCat("chunk begins at ", offset,
                                              ", the stored part of ", sha256_,
                                              " ends at ", size_));
  }
  if (size_ + static_cast<int64_t>(data.size()) > total_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "more than the announced ", total_, " bytes of ", sha256_));
  }
  while (!data.empty()) {
    const ssize_t n = ::pwrite(fd_, data.data(), data.size(), size_);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoToStatus(errno, "artifact store");
    hash_.Update(data.substr(0, static_cast<size_t>(n)));
    data.remove_prefix(static_cast<size_t>(n));
    size_ += n;
  }
  return absl::OkStatus();
}

absl::Status ArtifactStore::Upload::Finish() {
  if (complete_) return absl::OkStatus();
  if (size_ < total_) {
    return absl::OutOfRangeError(absl::StrCat("the upload of ", sha256_,
                                              " ended at ", size_, " of ",
                                              total_, " bytes"));
  }
  const std::string digest = hash_.HexDigest();
  absl::Status status =
      digest == sha256_ && size_ == total_
          ? Publish()
          : absl::DataLossError(absl::StrCat("the content of ", sha256_,
                                             " has the digest ", digest));
  // After a failed sync the file's state is unknown: it is not used again.
  if (!status.ok()) ::unlink(store_->PartialPath(sha256_).c_str());
  return status;
}

absl::Status ArtifactStore::Upload::Publish() {
  const std::string partial = store_->PartialPath(sha256_);
  if (::fsync(fd_) != 0) return ErrnoToStatus(errno, partial);
  const std::string object = store_->ObjectPath(sha256_);
  const std::string parent = object.substr(0, object.rfind('/'));
  RETURN_IF_ERROR(CreateDirectories(parent));
  if (::rename(partial.c_str(), object.c_str()) != 0) {
    return ErrnoToStatus(errno, object);
  }
  absl::Status synced = SyncPath(parent);
  if (synced.ok()) {
    synced = SyncPath(absl::StrCat(store_->directory_, "/objects"));
  }
  // Else it would count as stored from now on.
  if (!synced.ok()) ::unlink(object.c_str());
  return synced;
}

ArtifactStore::Upload::~Upload() {
  if (fd_ >= 0) ::close(fd_);
  if (!complete_) store_->EndUpload(sha256_);
}

absl::StatusOr<std::unique_ptr<ArtifactStore::Reader>> ArtifactStore::OpenRead(
    const std::string& sha256) {
  ASSIGN_OR_RETURN(const std::string path, PathOf(sha256));
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoToStatus(errno, path);
  struct stat info;
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    return ErrnoToStatus(error, path);
  }
  return std::unique_ptr<Reader>(new Reader(this, sha256, fd, info.st_size));
}

ArtifactStore::Reader::~Reader() { ::close(fd_); }

absl::StatusOr<std::string> ArtifactStore::Reader::Read(int64_t offset,
                                                        size_t max_bytes) {
  std::string data(max_bytes, '\0');
  size_t filled = 0;
  while (filled < max_bytes) {
    const ssize_t n = ::pread(fd_, data.data() + filled, max_bytes - filled,
                              offset + static_cast<int64_t>(filled));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoToStatus(errno, sha256_);
    if (n == 0) break;
    filled += static_cast<size_t>(n);
  }
  data.resize(filled);
  if (offset == hashed_ && !verified_) {
    hash_.Update(data);
    hashed_ += static_cast<int64_t>(filled);
    if (hashed_ == size_) {
      verified_ = true;
      if (hash_.HexDigest() != sha256_) {
        store_->Quarantine(sha256_);
        return absl::DataLossError(
            absl::StrCat("the stored content of ", sha256_, " is damaged"));
      }
    }
  }
  return data;
}

int ArtifactStore::Collect(const std::set<std::string>& referenced,
                           absl::Time older_than) {
  const time_t limit = absl::ToTimeT(older_than);
  int removed = 0;
  const auto remove_old = [&](const std::string& path) {
    struct stat info;
    if (::stat(path.c_str(), &info) != 0 || info.st_mtime >= limit) return;
    if (::unlink(path.c_str()) == 0) ++removed;
  };
  const std::string objects = absl::StrCat(directory_, "/objects");
  for (const std::string& file :
       ListFilesRecursively(objects).value_or(std::vector<std::string>())) {
    std::string sha256 = file;
    sha256.erase(std::remove(sha256.begin(), sha256.end(), '/'), sha256.end());
    if (referenced.contains(sha256)) continue;
    MutexLock lock(&mu_);
    remove_old(absl::StrCat(objects, "/", file));
  }
  const std::string partial = absl::StrCat(directory_, "/partial");
  for (const std::string& file :
       ListFilesRecursively(partial).value_or(std::vector<std::string>())) {
    MutexLock lock(&mu_);
    if (!uploading_.contains(file)) {
      remove_old(absl::StrCat(partial, "/", file));
    }
  }
  return removed;
}

}  // namespace qlora::server
