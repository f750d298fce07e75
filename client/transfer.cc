#include "client/transfer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/base/files.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kChunk = 1 << 20;
constexpr int kTransferAttempts = 5;

// A file on its way: bar, speed and the time that is left.
class TransferBar {
 public:
  TransferBar(ProgressLine& line, std::string title, int64_t total)
      : line_(line), title_(std::move(title)), total_(total) {}

  void Show(int64_t done) {
    const absl::Time now = absl::Now();
    // A terminal need not see each of a thousand chunks.
    if (!line_.enabled() || now < next_) return;
    next_ = now + kRedraw;
    if (first_ < 0) first_ = done;
    line_.Show(TransferText(title_, done, total_, done - first_, now - start_,
                            DetectTerminal().utf8));
  }

 private:
  static constexpr absl::Duration kRedraw = absl::Milliseconds(100);

  ProgressLine& line_;
  const std::string title_;
  const int64_t total_;
  const absl::Time start_ = absl::Now();
  absl::Time next_ = absl::InfinitePast();
  // Bytes that were there before this attempt.
  int64_t first_ = -1;
};

// Sends the file from `offset` on. Sets *status to how the call ended.
absl::Status SendFrom(Connection& connection, const std::string& path,
                      const v1::ArtifactFile& file, int64_t offset,
                      ProgressLine& progress, grpc::Status* status) {
  std::ifstream in(path, std::ios::binary);
  in.seekg(offset);
  if (!in) return absl::UnavailableError(absl::StrCat(path, ": cannot read"));
  grpc::ClientContext context;
  v1::UploadArtifactResponse response;
  const auto writer =
      connection.artifacts().UploadArtifact(&context, &response);
  v1::UploadArtifactRequest request;
  request.set_sha256(file.sha256());
  request.set_total_bytes(file.size_bytes());
  std::string chunk;
  TransferBar bar(progress, absl::StrCat("uploading ", file.path()),
                  file.size_bytes());
  do {
    chunk.resize(std::min(kChunk, file.size_bytes() - offset));
    if (!in.read(chunk.data(), static_cast<std::streamsize>(chunk.size()))) {
      context.TryCancel();
      return absl::AbortedError(
          absl::StrCat(path, ": changed while it was uploaded"));
    }
    request.set_offset(offset);
    request.set_data(chunk);
    // A refused write: Finish says why.
    if (!writer->Write(request)) break;
    request.Clear();
    offset += static_cast<int64_t>(chunk.size());
    bar.Show(offset);
  } while (offset < file.size_bytes());
  writer->WritesDone();
  *status = writer->Finish();
  return absl::OkStatus();
}

// Receives the artifact's bytes behind *offset into out. *offset grows.
grpc::Status ReceiveFrom(Connection& connection, const v1::ArtifactFile& file,
                         std::ofstream& out, Sha256& digest, int64_t* offset,
                         ProgressLine& progress) {
  grpc::ClientContext context;
  v1::DownloadArtifactRequest request;
  request.set_sha256(file.sha256());
  request.set_offset(*offset);
  const auto reader =
      connection.artifacts().DownloadArtifact(&context, request);
  v1::DownloadArtifactResponse response;
  TransferBar bar(progress, absl::StrCat("downloading ", file.path()),
                  file.size_bytes());
  while (reader->Read(&response)) {
    const std::string& data = response.data();
    if (response.offset() != *offset ||
        *offset + static_cast<int64_t>(data.size()) > file.size_bytes()) {
      context.TryCancel();
      return {grpc::StatusCode::DATA_LOSS,
              "the server sent other bytes than it announced"};
    }
    out.write(data.data(), static_cast<std::streamsize>(data.size()));
    if (!out) {
      context.TryCancel();
      return {grpc::StatusCode::RESOURCE_EXHAUSTED, "cannot write: disk full?"};
    }
    digest.Update(data);
    *offset += static_cast<int64_t>(data.size());
    bar.Show(*offset);
  }
  return reader->Finish();
}

bool IsHidden(const std::string& relative) {
  return relative[0] == '.' || relative.find("/.") != std::string::npos;
}

// Downloads all files into `directory` and checks them.
absl::Status FillDirectory(Connection& connection,
                           const std::vector<v1::ArtifactFile>& files,
                           const std::string& directory,
                           ProgressLine& progress) {
  bool has_sums = false;
  int number = 0;
  for (const v1::ArtifactFile& file : files) {
    progress.SetPrefix(absl::StrCat(++number, "/", files.size(), " "));
    if (!IsSafeRelativePath(file.path())) {
      return absl::DataLossError(absl::StrCat(
          "the server names a file outside of the directory: ", file.path()));
    }
    const fs::path path = fs::path(directory) / file.path();
    RETURN_IF_ERROR(CreateDirectories(path.parent_path().string()));
    RETURN_IF_ERROR(DownloadFile(connection, file, path.string(), progress));
    has_sums = has_sums || file.path() == "SHA256SUMS";
  }
  progress.SetPrefix("");
  return has_sums ? VerifySums(directory) : absl::OkStatus();
}

// Puts `from` where `to` is, which may be an old directory.
absl::Status ReplaceDirectory(const std::string& from, const std::string& to) {
  const std::string old = from + ".old";
  std::error_code error;
  if (fs::exists(to)) {
    fs::rename(to, old, error);
    if (error) return ErrnoToStatus(error.value(), to);
  }
  fs::rename(from, to, error);
  if (error) {
    std::error_code ignored;
    fs::rename(old, to, ignored);
    return ErrnoToStatus(error.value(), to);
  }
  return RemoveRecursively(old);
}

}  // namespace

std::string TransferText(const std::string& title, int64_t done, int64_t total,
                         int64_t moved, absl::Duration elapsed, bool utf8) {
  const double fraction =
      total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  std::string text =
      absl::StrFormat("%s %s %s of %s", title, Bar(fraction, 20, utf8),
                      FormatBytes(done), FormatBytes(total));
  const double seconds = absl::ToDoubleSeconds(elapsed);
  // A speed measured over less says nothing.
  if (seconds < 1 || moved <= 0) return text;
  const double speed = static_cast<double>(moved) / seconds;
  absl::StrAppendFormat(
      &text, "  %s/s  ETA %s", FormatBytes(static_cast<int64_t>(speed)),
      ShortDuration(absl::Seconds(static_cast<double>(total - done) / speed)));
  return text;
}

absl::StatusOr<v1::ArtifactFile> UploadFile(Connection& connection,
                                            const std::string& path,
                                            const std::string& name,
                                            ProgressLine& progress) {
  v1::ArtifactFile file;
  std::error_code error;
  file.set_path(name);
  file.set_size_bytes(static_cast<int64_t>(fs::file_size(path, error)));
  if (error) {
    return WithWhat(ErrnoToStatus(error.value(), path),
                    absl::StrCat("cannot upload ", path));
  }
  TransferBar bar(progress, absl::StrCat("reading ", name), file.size_bytes());
  int64_t read = 0;
  // Asked before each MiB.
  const auto cancelled = [&] {
    bar.Show(read);
    read = std::min(read + kChunk, file.size_bytes());
    return false;
  };
  ASSIGN_OR_RETURN(*file.mutable_sha256(), Sha256OfFile(path, cancelled));
  v1::StatArtifactRequest stat;
  stat.set_sha256(file.sha256());
  for (int attempt = 1;; ++attempt) {
    ASSIGN_OR_RETURN(
        const v1::StatArtifactResponse stored,
        connection.Call(connection.artifacts(),
                        &v1::ArtifactService::Stub::StatArtifact, stat));
    if (stored.complete()) return file;
    grpc::Status status;
    RETURN_IF_ERROR(SendFrom(connection, path, file, stored.size_bytes(),
                             progress, &status));
    if (status.ok()) return file;
    // Another upload of the same content may have moved the end.
    const bool again = IsConnectionLoss(status) ||
                       status.error_code() == grpc::StatusCode::OUT_OF_RANGE;
    if (!again || attempt == kTransferAttempts) {
      return WithWhat(connection.ToStatus(status),
                      absl::StrCat("cannot upload ", path));
    }
    absl::SleepFor(absl::Milliseconds(200) * attempt);
  }
}

absl::StatusOr<std::vector<std::string>> VisibleFiles(
    const std::string& directory) {
  ASSIGN_OR_RETURN(std::vector<std::string> paths,
                   ListFilesRecursively(directory));
  std::erase_if(paths, IsHidden);
  return paths;
}

absl::StatusOr<std::vector<v1::ArtifactFile>> UploadDirectory(
    Connection& connection, const std::string& directory,
    const std::vector<std::string>& relative_paths, ProgressLine& progress) {
  std::vector<v1::ArtifactFile> files;
  for (const std::string& relative : relative_paths) {
    progress.SetPrefix(
        absl::StrCat(files.size() + 1, "/", relative_paths.size(), " "));
    ASSIGN_OR_RETURN(
        files.emplace_back(),
        UploadFile(connection, absl::StrCat(directory, "/", relative), relative,
                   progress));
  }
  progress.SetPrefix("");
  return files;
}

absl::Status DownloadFile(Connection& connection, const v1::ArtifactFile& file,
                          const std::string& path, ProgressLine& progress) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  if (!out) return absl::UnavailableError(absl::StrCat(path, ": cannot write"));
  Sha256 digest;
  int64_t offset = 0;
  for (int attempt = 1;; ++attempt) {
    const grpc::Status status =
        ReceiveFrom(connection, file, out, digest, &offset, progress);
    if (status.ok()) break;
    if (!IsConnectionLoss(status) || attempt == kTransferAttempts) {
      return WithWhat(connection.ToStatus(status),
                      absl::StrCat("cannot download ", file.path()));
    }
    absl::SleepFor(absl::Milliseconds(200) * attempt);
  }
  out.close();
  if (!out)
    return absl::ResourceExhaustedError(absl::StrCat(path, ": disk full?"));
  if (offset != file.size_bytes() || digest.HexDigest() != file.sha256()) {
    return WithWhat(
        absl::DataLossError(absl::StrCat(
            "its content does not have the digest ", file.sha256())),
        absl::StrCat("cannot download ", file.path()));
  }
  return SyncPath(path);
}

absl::Status VerifySums(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::string sums, ReadFile(directory + "/SHA256SUMS"));
  for (absl::string_view line : absl::StrSplit(sums, '\n', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(line, absl::MaxSplits("  ", 1));
    if (!IsSha256Hex(parts.first) || !IsSafeRelativePath(parts.second)) {
      return absl::DataLossError(
          absl::StrCat(directory, "/SHA256SUMS: no digest and path: ", line));
    }
    const std::string path = absl::StrCat(directory, "/", parts.second);
    ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(path));
    if (digest != parts.first) {
      return absl::DataLossError(absl::StrCat(
          path, ": has digest ", digest, ", SHA256SUMS says ", parts.first));
    }
  }
  return absl::OkStatus();
}

absl::Status PullDirectory(Connection& connection,
                           const std::vector<v1::ArtifactFile>& files,
                           const std::string& directory, bool force,
                           ProgressLine& progress) {
  std::error_code error;
  const fs::path target = fs::absolute(directory).lexically_normal();
  const std::string to =
      target.has_filename() ? target.string() : target.parent_path().string();
  if (fs::exists(to, error) && !fs::is_empty(to, error) && !force) {
    return WithWhat(absl::AlreadyExistsError("it exists; --force replaces it"),
                    absl::StrCat("will not write to ", directory));
  }
  const std::string staging = absl::StrCat(to, ".partial-", NewRequestId());
  RETURN_IF_ERROR(CreateDirectories(staging));
  absl::Status status = FillDirectory(connection, files, staging, progress);
  if (status.ok()) status = ReplaceDirectory(staging, to);
  if (!status.ok()) RemoveRecursively(staging).IgnoreError();
  progress.Clear();
  return status;
}

}  // namespace qlora::client
