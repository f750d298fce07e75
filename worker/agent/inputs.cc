#include "worker/agent/inputs.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/spec/job_spec.h"

namespace qlora::agent {
namespace fs = std::filesystem;

namespace {

// A store that is full may have room again; a checkpoint is worth the wait.
constexpr absl::Duration kFullStorePatience = absl::Minutes(5);

using Check = ContentCache::Check;

constexpr char kCheckpointUnusable[] = "qlora.agent/checkpoint_unusable";

}  // namespace

bool IsCheckpointUnusable(const absl::Status& status) {
  return status.GetPayload(kCheckpointUnusable).has_value();
}

absl::StatusOr<LocalInputs> InputFetcher::Fetch(const InputRequest& request,
                                                const std::string& directory,
                                                Cancellation& cancellation) {
  cache_.Trim();
  LocalInputs local;
  ASSIGN_OR_RETURN(
      local.model_directory,
      FetchModel(request.model, directory + "/model", cancellation));
  for (int i = 0; i < request.inputs.size(); ++i) {
    const v1::UploadedInput& input = request.inputs[i];
    const std::string target = absl::StrCat(directory, "/inputs/", i);
    RETURN_IF_ERROR(
        FetchFiles(input.files(), Check::kSize, target, cancellation));
    v1::LocalInput entry;
    entry.set_name(input.path());
    entry.set_path(input.files_size() == 1
                       ? absl::StrCat(target, "/", input.files(0).path())
                       : target);
    local.inputs.push_back(std::move(entry));
  }
  RETURN_IF_ERROR(AddAbsolutePaths(request, local));
  if (!request.resume_files.empty()) {
    local.resume_directory = directory + "/resume";
    RETURN_IF_ERROR(FetchCheckpoint(request.resume_files,
                                    local.resume_directory, cancellation));
  }
  if (!request.adapter_files.empty()) {
    local.adapter_directory = directory + "/adapter";
    RETURN_IF_ERROR(FetchFiles(request.adapter_files, Check::kSize,
                               local.adapter_directory, cancellation));
  }
  return local;
}

absl::StatusOr<std::string> InputFetcher::FetchModel(
    const v1::ModelSource& model, const std::string& directory,
    Cancellation& cancellation) {
  if (!model.directory().empty())
    return AllowedPath(model.directory(), "model");
  if (model.files().empty()) return std::string();
  RETURN_IF_ERROR(
      FetchFiles(model.files(), Check::kSize, directory, cancellation));
  return directory;
}

// The user did not name these files: that they are gone is not his error.
absl::Status InputFetcher::FetchCheckpoint(const ArtifactFiles& files,
                                           const std::string& directory,
                                           Cancellation& cancellation) {
  const absl::Status status =
      FetchFiles(files, Check::kDigest, directory, cancellation);
  if (!absl::IsNotFound(status) && !absl::IsDataLoss(status)) return status;
  absl::Status unusable = absl::DataLossError(absl::StrCat(
      "the checkpoint to resume from is not whole in the artifact store: ",
      status.message()));
  unusable.SetPayload(kCheckpointUnusable, absl::Cord("1"));
  return unusable;
}

absl::Status InputFetcher::FetchFiles(const ArtifactFiles& files, Check check,
                                      const std::string& directory,
                                      Cancellation& cancellation) {
  for (const v1::ArtifactFile& file : files) {
    if (!IsSafeRelativePath(file.path())) {
      return absl::InvalidArgumentError(
          absl::StrCat("file name \"", file.path(),
                       "\" is not a relative path below its directory"));
    }
    const std::string path = absl::StrCat(directory, "/", file.path());
    RETURN_IF_ERROR(CreateDirectories(fs::path(path).parent_path().string()));
    RETURN_IF_ERROR(cache_.Place(file, check, path, client_, cancellation));
  }
  return absl::OkStatus();
}

// Data that lies on this node already, below a model root.
absl::Status InputFetcher::AddAbsolutePaths(const InputRequest& request,
                                            LocalInputs& inputs) const {
  if (request.job_file.empty()) return absl::OkStatus();
  const ParsedJob job = ParseJobFile(request.job_file);
  for (const std::string& name : NamedPaths(job.spec)) {
    const bool uploaded = std::any_of(
        inputs.inputs.begin(), inputs.inputs.end(),
        [&](const v1::LocalInput& input) { return input.name() == name; });
    if (uploaded || name.empty() || name.front() != '/') continue;
    v1::LocalInput entry;
    entry.set_name(name);
    ASSIGN_OR_RETURN(*entry.mutable_path(), AllowedPath(name, "data file"));
    inputs.inputs.push_back(std::move(entry));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> InputFetcher::AllowedPath(const std::string& path,
                                                      const char* what) const {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) {
    return absl::NotFoundError(
        absl::StrCat(what, " ", path, ": ", error.message(), " on this node"));
  }
  if (!fs::path(path).is_absolute() || !IsBeneathOneOf(path, model_roots_)) {
    return absl::PermissionDeniedError(absl::StrCat(
        what, " ", path, " is not under a model root of this node (",
        model_roots_.empty() ? "it has none"
                             : absl::StrJoin(model_roots_, ", "),
        "); start the worker with --model-root for its directory"));
  }
  return real.string();
}

absl::StatusOr<ArtifactFiles> InputFetcher::Store(const std::string& directory,
                                                  Cancellation& cancellation) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ListFilesRecursively(directory));
  ArtifactFiles files;
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(directory, "/", name);
    ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(path, [&] {
                       return cancellation.cancelled();
                     }));
    std::error_code error;
    const auto size = fs::file_size(path, error);
    if (error) return ErrnoToStatus(error.value(), path);
    RETURN_IF_ERROR(
        client_.Upload(digest, path, kFullStorePatience, cancellation));
    // It is stored; the cache only saves a download.
    if (const absl::Status kept = cache_.Adopt(path, digest, cancellation);
        !kept.ok()) {
      LogWarning("not kept in the cache", {{"file", name}, {"error", kept}});
    }
    v1::ArtifactFile& file = *files.Add();
    file.set_path(name);
    file.set_sha256(digest);
    file.set_size_bytes(static_cast<int64_t>(size));
  }
  // While the last ones were on their way the store may have collected the
  // first; what is there counts as new from now on.
  for (const v1::ArtifactFile& file : files) {
    RETURN_IF_ERROR(client_.Upload(file.sha256(),
                                   absl::StrCat(directory, "/", file.path()),
                                   kFullStorePatience, cancellation));
  }
  return files;
}

}  // namespace qlora::agent
