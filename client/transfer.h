// Files to and from the artifact store, by content: chunks of at most 1 MiB
// that go on where a broken transfer stopped.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/connection.h"
#include "client/terminal.h"
#include "qlora/v1/job.pb.h"

namespace qlora::client {

// "uploading a.bin [####....] 1.2 GiB of 4.0 GiB  85.0 MiB/s  ETA 33s". `moved`
// of the `done` bytes took `elapsed`; the rest was there before.
std::string TransferText(const std::string& title, int64_t done, int64_t total,
                         int64_t moved, absl::Duration elapsed, bool utf8);

// Uploads a file unless the server has its content, and says how it is called
// there. `name` becomes ArtifactFile.path. NotFound if there is no such file;
// Aborted if it changes meanwhile; the server's errors.
absl::StatusOr<v1::ArtifactFile> UploadFile(Connection& connection,
                                            const std::string& path,
                                            const std::string& name,
                                            ProgressLine& progress);

// Every regular file below the directory, by its relative path. Hidden files
// are left out.
absl::StatusOr<std::vector<v1::ArtifactFile>> UploadDirectory(
    Connection& connection, const std::string& directory,
    const std::vector<std::string>& relative_paths, ProgressLine& progress);

// Relative paths of the regular files below a directory, hidden ones left out.
absl::StatusOr<std::vector<std::string>> VisibleFiles(
    const std::string& directory);

// Downloads to `path`, synced, and checks size and digest. DataLoss if they
// differ.
absl::Status DownloadFile(Connection& connection, const v1::ArtifactFile& file,
                          const std::string& path, ProgressLine& progress);

// Brings the files into a new directory: downloads beside it, checks what
// SHA256SUMS says if it is among them, then renames. An existing directory that
// is not empty is refused (AlreadyExists) unless force, which replaces it.
absl::Status PullDirectory(Connection& connection,
                           const std::vector<v1::ArtifactFile>& files,
                           const std::string& directory, bool force,
                           ProgressLine& progress);

// DataLoss naming the first file that does not have the digest that
// DIR/SHA256SUMS ("<hex>  <path>" lines) states; NotFound if one is missing.
absl::Status VerifySums(const std::string& directory);

}  // namespace qlora::client
