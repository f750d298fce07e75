// Brings what a task reads to this node: uploaded files, models, checkpoints.
// Thread-safe; calls block for as long as the transfer takes.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/repeated_field.h"
#include "qlora/v1/trainer.pb.h"
#include "qlora/v1/worker.pb.h"
#include "worker/agent/artifact_client.h"
#include "worker/agent/cancellation.h"
#include "worker/agent/content_cache.h"

namespace qlora::agent {

using ArtifactFiles = google::protobuf::RepeatedPtrField<v1::ArtifactFile>;

struct InputRequest {
  v1::ModelSource model;
  google::protobuf::RepeatedPtrField<v1::UploadedInput> inputs;
  // Names data by absolute paths, perhaps; empty: none.
  std::string job_file;
  ArtifactFiles resume_files;
  ArtifactFiles adapter_files;
};

// True for an error of Fetch that says that the checkpoint to resume from is
// not to be had whole; another checkpoint may be.
bool IsCheckpointUnusable(const absl::Status& status);

// Where it lies; empty for what was not asked for.
struct LocalInputs {
  std::string model_directory;
  std::vector<v1::LocalInput> inputs;
  std::string resume_directory;
  std::string adapter_directory;
};

class InputFetcher {
 public:
  // All must outlive this.
  InputFetcher(ContentCache& cache, ArtifactClient& client,
               std::vector<std::string> model_roots)
      : cache_(cache), client_(client), model_roots_(std::move(model_roots)) {}

  // Puts fetched files below `directory`, which must exist, and keeps the
  // cache's limits even if there are none. NotFound,
  // InvalidArgument and PermissionDenied: the job names something that is not
  // there or not allowed; DataLoss: the checkpoint cannot be had from the
  // store; else as ContentCache::Place.
  absl::StatusOr<LocalInputs> Fetch(const InputRequest& request,
                                    const std::string& directory,
                                    Cancellation& cancellation);

  // Uploads every file below `directory`, keeps them in the cache and returns
  // their names and digests. Errors as ArtifactClient::Upload.
  absl::StatusOr<ArtifactFiles> Store(const std::string& directory,
                                      Cancellation& cancellation);

 private:
  absl::StatusOr<std::string> FetchModel(const v1::ModelSource& model,
                                         const std::string& directory,
                                         Cancellation& cancellation);
  absl::Status FetchFiles(const ArtifactFiles& files, ContentCache::Check check,
                          const std::string& directory,
                          Cancellation& cancellation);
  absl::Status FetchCheckpoint(const ArtifactFiles& files,
                               const std::string& directory,
                               Cancellation& cancellation);
  absl::Status AddAbsolutePaths(const InputRequest& request,
                                LocalInputs& inputs) const;
  absl::StatusOr<std::string> AllowedPath(const std::string& path,
                                          const char* what) const;

  ContentCache& cache_;
  ArtifactClient& client_;
  const std::vector<std::string> model_roots_;
};

}  // namespace qlora::agent
