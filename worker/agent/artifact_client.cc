#include "worker/agent/artifact_client.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "worker/agent/backoff.h"

namespace qlora::agent {
namespace {

constexpr size_t kChunkBytes = 1 << 20;
constexpr absl::Duration kUnaryDeadline = absl::Seconds(10);
constexpr absl::Duration kFirstWait = absl::Milliseconds(200);
constexpr absl::Duration kLongestWait = absl::Seconds(10);

// A context that cancellation ends.
class CancellableContext {
 public:
  explicit CancellableContext(Cancellation& cancellation)
      : cancellation_(cancellation) {
    cancellation_.OnCancel([this] { context_.TryCancel(); });
  }
  ~CancellableContext() { cancellation_.OnCancel(nullptr); }
  grpc::ClientContext* get() { return &context_; }

 private:
  Cancellation& cancellation_;
  grpc::ClientContext context_;
};

// Repeats `once` while the other side is away or, within `patience`, full.
absl::Status Persist(Cancellation& cancellation, absl::Duration patience,
                     const std::function<absl::Status()>& once) {
  Backoff backoff(kFirstWait, kLongestWait);
  const absl::Time give_up = SteadyNow() + patience;
  while (true) {
    const absl::Status status = once();
    if (cancellation.cancelled()) return absl::CancelledError("cancelled");
    const bool again =
        absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
        absl::IsOutOfRange(status) || absl::IsAborted(status) ||
        (absl::IsResourceExhausted(status) && SteadyNow() < give_up);
    if (!again) return status;
    LogDebug("artifact transfer waits", {{"error", status}});
    if (!cancellation.Sleep(backoff.Next())) {
      return absl::CancelledError("cancelled");
    }
  }
}

absl::StatusOr<int64_t> FileSize(int fd, const std::string& path) {
  struct stat info;
  if (::fstat(fd, &info) != 0) return ErrnoToStatus(errno, path);
  return static_cast<int64_t>(info.st_size);
}

absl::Status AppendAll(int fd, const std::string& bytes,
                       const std::string& path) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoToStatus(errno, path);
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()),
          status.error_message()};
}

ArtifactClient::ArtifactClient(std::shared_ptr<grpc::Channel> channel)
    : stub_(v1::ArtifactService::NewStub(std::move(channel))) {}

absl::Status ArtifactClient::Download(const std::string& sha256,
                                      const std::string& path,
                                      Cancellation& cancellation) {
  return Persist(cancellation, absl::ZeroDuration(),
                 [&] { return DownloadOnce(sha256, path, cancellation); });
}

absl::Status ArtifactClient::DownloadOnce(const std::string& sha256,
                                          const std::string& path,
                                          Cancellation& cancellation) {
  const UniqueFd fd(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoToStatus(errno, path);
  ASSIGN_OR_RETURN(int64_t offset, FileSize(fd.get(), path));
  CancellableContext context(cancellation);
  v1::DownloadArtifactRequest request;
  request.set_sha256(sha256);
  request.set_offset(offset);
  const auto stream = stub_->DownloadArtifact(context.get(), request);
  v1::DownloadArtifactResponse chunk;
  absl::Status local;
  while (local.ok() && stream->Read(&chunk)) {
    if (chunk.offset() != offset) {
      local = absl::UnavailableError(
          absl::StrCat("artifact ", sha256, ": a chunk begins at ",
                       chunk.offset(), " instead of ", offset));
    } else {
      local = AppendAll(fd.get(), chunk.data(), path);
      offset += static_cast<int64_t>(chunk.data().size());
    }
  }
  if (!local.ok()) context.get()->TryCancel();
  const grpc::Status finished = stream->Finish();
  if (finished.error_code() == grpc::StatusCode::OUT_OF_RANGE) {
    // More than the artifact has: not a part of it.
    if (::ftruncate(fd.get(), 0) != 0) return ErrnoToStatus(errno, path);
  }
  return local.ok() ? FromGrpc(finished) : local;
}

absl::Status ArtifactClient::Upload(const std::string& sha256,
                                    const std::string& path,
                                    absl::Duration patience,
                                    Cancellation& cancellation) {
  return Persist(cancellation, patience,
                 [&] { return UploadOnce(sha256, path, cancellation); });
}

absl::Status ArtifactClient::UploadOnce(const std::string& sha256,
                                        const std::string& path,
                                        Cancellation& cancellation) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoToStatus(errno, path);
  ASSIGN_OR_RETURN(const int64_t total, FileSize(fd.get(), path));
  v1::StatArtifactResponse stat;
  {
    CancellableContext context(cancellation);
    context.get()->set_deadline(
        absl::ToChronoTime(absl::Now() + kUnaryDeadline));
    v1::StatArtifactRequest request;
    request.set_sha256(sha256);
    RETURN_IF_ERROR(
        FromGrpc(stub_->StatArtifact(context.get(), request, &stat)));
  }
  if (stat.complete()) return absl::OkStatus();
  CancellableContext context(cancellation);
  v1::UploadArtifactResponse response;
  const auto stream = stub_->UploadArtifact(context.get(), &response);
  v1::UploadArtifactRequest chunk;
  chunk.set_sha256(sha256);
  chunk.set_total_bytes(total);
  absl::Status local;
  int64_t offset = stat.size_bytes();
  do {
    chunk.set_offset(offset);
    std::string& data = *chunk.mutable_data();
    data.resize(kChunkBytes);
    const ssize_t n = ::pread(fd.get(), data.data(), data.size(), offset);
    if (n < 0) local = ErrnoToStatus(errno, path);
    data.resize(n < 0 ? 0 : static_cast<size_t>(n));
    if (!local.ok() || !stream->Write(chunk)) break;
    offset += n;
    chunk.clear_sha256();
    chunk.clear_total_bytes();
    if (n == 0) break;
  } while (offset < total);
  if (!local.ok()) context.get()->TryCancel();
  stream->WritesDone();
  const grpc::Status finished = stream->Finish();
  return local.ok() ? FromGrpc(finished) : local;
}

}  // namespace qlora::agent
