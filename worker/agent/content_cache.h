// Files by the SHA-256 of their content: <directory>/<first two>/<digest>.
// Holds what was downloaded and what was uploaded, so that a restarted attempt
// finds its inputs and its checkpoint here. Only whole, verified files bear
// their digest as name; parts of downloads end in ".part". Ranks keep the
// tokens of their jobs in <directory>/tokens: these files count and go like the
// others. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/mutex.h"
#include "qlora/v1/job.pb.h"
#include "worker/agent/artifact_client.h"

namespace qlora::agent {

class ContentCache {
 public:
  // Beyond max_bytes, and where the disk has little room left, files that
  // nothing uses go, least recently used first.
  static absl::StatusOr<std::unique_ptr<ContentCache>> Open(
      std::string directory, int64_t max_bytes);

  // What a file that is here already is checked for before it is used; one
  // that fails is downloaded anew. kDigest reads it whole.
  enum class Check { kSize, kDigest };

  // For TrainerTask.token_cache_directory; need not exist.
  std::string token_directory() const { return directory_ + "/tokens"; }

  // Keeps the limits, also after ranks have written: files that nothing uses
  // go.
  void Trim();

  // Makes `destination` (which must not exist) that file, downloading what is
  // missing. Blocks, also while another thread works on the same digest.
  // InvalidArgument: no digest; DataLoss: the store sent another content;
  // ResourceExhausted: this disk is full; else as ArtifactClient::Download.
  absl::Status Place(const v1::ArtifactFile& file, Check check,
                     const std::string& destination, ArtifactClient& client,
                     Cancellation& cancellation);

  // Takes a file that is synced and whose digest the caller has computed.
  // Blocks as Place; Cancelled, or as common/base/files.h.
  absl::Status Adopt(const std::string& path, const std::string& sha256,
                     Cancellation& cancellation);

 private:
  ContentCache(std::string directory, int64_t max_bytes)
      : directory_(std::move(directory)), max_bytes_(max_bytes) {}
  std::string PathOf(const std::string& sha256) const;
  absl::Status Fetch(const v1::ArtifactFile& file, ArtifactClient& client,
                     Cancellation& cancellation);
  absl::Status PlaceHeld(const v1::ArtifactFile& file, Check check,
                         const std::string& destination, ArtifactClient& client,
                         Cancellation& cancellation);
  absl::StatusOr<bool> HasHeld(const v1::ArtifactFile& file, Check check,
                               const Cancellation& cancellation) const;
  // Cancelled: it is not held.
  absl::Status Hold(const std::string& sha256,
                    const Cancellation& cancellation);
  void Release(const std::string& sha256);
  // Makes room for so many bytes more.
  void EvictLocked(int64_t needed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string directory_;
  const int64_t max_bytes_;

  Mutex mu_;
  CondVar released_;
  // Digests that a thread works on.
  std::set<std::string> held_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::agent
