// Files by the SHA-256 of their content, in a local directory:
//
//   objects/ab/cdef...   complete, synced, never changed
//   partial/abcdef...    an upload on its way; goes on where it broke off
//   corrupt/abcdef...    content that no longer has its digest
//
// Thread-safe. Removal is by collection: what nothing refers to and nobody
// touched for the grace period goes.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"
#include "common/base/sha256.h"

namespace qlora::server {

class ArtifactStore {
 public:
  struct Info {
    bool complete = false;
    int64_t size_bytes = 0;
  };
  // One upload. Destroyed before Finish, it leaves the partial file. Used by
  // one thread at a time.
  class Upload;
  // Reads one artifact. Used by one thread at a time.
  class Reader;

  static absl::StatusOr<std::unique_ptr<ArtifactStore>> Open(
      const std::string& directory);

  // What is there; keeps a complete artifact from collection for a while.
  // InvalidArgument: no digest.
  absl::StatusOr<Info> Stat(const std::string& sha256);

  // InvalidArgument: no digest or size; Unavailable: the same artifact is being
  // uploaded right now (try again).
  absl::StatusOr<std::unique_ptr<Upload>> BeginUpload(const std::string& sha256,
                                                      int64_t total_bytes);

  // NotFound.
  absl::StatusOr<std::unique_ptr<Reader>> OpenRead(const std::string& sha256);
  // The complete artifact's path, to read. NotFound.
  absl::StatusOr<std::string> PathOf(const std::string& sha256);

  // Removes complete artifacts that are not in `referenced`, and partial ones,
  // if they were last touched before `older_than`. Returns how many.
  int Collect(const std::set<std::string>& referenced, absl::Time older_than);

 private:
  friend class Upload;
  friend class Reader;
  explicit ArtifactStore(std::string directory)
      : directory_(std::move(directory)) {}

  std::string ObjectPath(const std::string& sha256) const;
  std::string PartialPath(const std::string& sha256) const;
  void EndUpload(const std::string& sha256);
  // Moves content that does not match its name out of the way.
  void Quarantine(const std::string& sha256);

  const std::string directory_;
  Mutex mu_;
  std::set<std::string> uploading_ ABSL_GUARDED_BY(mu_);
};

class ArtifactStore::Upload {
 public:
  ~Upload();
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;

  // It was there already: what is appended is dropped.
  bool complete() const { return complete_; }
  // OutOfRange: offset is not where the stored part ends; InvalidArgument: more
  // than announced; ResourceExhausted: the disk is full.
  absl::Status Append(int64_t offset, std::string_view data);
  // DataLoss: size or digest differ (the partial file is removed). Else the
  // artifact is on disk when this returns OK.
  absl::Status Finish();

 private:
  friend class ArtifactStore;
  Upload(ArtifactStore* store, std::string sha256, int64_t total)
      : store_(store), sha256_(std::move(sha256)), total_(total) {}
  absl::Status Resume();
  absl::Status Publish();

  ArtifactStore* const store_;
  const std::string sha256_;
  const int64_t total_;
  bool complete_ = false;
  int fd_ = -1;
  int64_t size_ = 0;
  Sha256 hash_;
};

class ArtifactStore::Reader {
 public:
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  int64_t size_bytes() const { return size_; }
  // Up to max_bytes from offset; empty at the end. DataLoss at the end of a
  // reading that began at 0 and went on without gaps, if the content is not
  // that of the name: the artifact is put aside.
  absl::StatusOr<std::string> Read(int64_t offset, size_t max_bytes);

 private:
  friend class ArtifactStore;
  Reader(ArtifactStore* store, std::string sha256, int fd, int64_t size)
      : store_(store), sha256_(std::move(sha256)), fd_(fd), size_(size) {}

  ArtifactStore* const store_;
  const std::string sha256_;
  const int fd_;
  const int64_t size_;
  Sha256 hash_;
  int64_t hashed_ = 0;
  bool verified_ = false;
};

}  // namespace qlora::server
