// From a job file to a job that can be queued: parses it, finds what it names,
// and says what is wrong with it. Reads files; never under the coordinator's
// lock. Thread-safe.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/coordinator.h"
#include "server/store/artifact_store.h"

namespace qlora::server {

// A model that a job or a task may use.
struct ResolvedModel {
  qlora::v1::ModelSource source;
  // config.json; empty if only workers can see it.
  std::string config_json;
};

class Admission {
 public:
  // Both must outlive it. model_roots: directories that this process may read
  // models from.
  Admission(Coordinator* coordinator, ArtifactStore* artifacts,
            std::vector<std::string> model_roots)
      : coordinator_(coordinator),
        artifacts_(artifacts),
        model_roots_(std::move(model_roots)) {}

  // A new job with its id. InvalidArgument with BadRequest details for each
  // place in the job file; FailedPrecondition if an upload is missing.
  absl::StatusOr<Job> Admit(
      const std::string& job_file,
      const google::protobuf::RepeatedPtrField<qlora::v1::UploadedInput>&
          inputs) const;

  // By registry name or absolute directory. weights: must it have some?
  // InvalidArgument, for the field that names it: model.base of a job file, or
  // a request's.
  absl::StatusOr<ResolvedModel> ResolveModel(const std::string& base,
                                             bool weights,
                                             const std::string& field) const;

  // OK if the artifact store has these files. FailedPrecondition names one that
  // it has not, InvalidArgument one whose path is wrong or comes twice.
  absl::Status CheckUploaded(
      const google::protobuf::RepeatedPtrField<qlora::v1::ArtifactFile>& files)
      const;

  // The content of the file of that name among a model's or an adapter's.
  // NotFound if there is none, InvalidArgument if it is larger than max_bytes.
  absl::StatusOr<std::string> ReadUploaded(
      const google::protobuf::RepeatedPtrField<qlora::v1::ArtifactFile>& files,
      const std::string& name, size_t max_bytes) const;

  // OK if the directory lies beneath a model root of this process.
  // InvalidArgument names the roots.
  absl::Status CheckDirectory(const std::string& directory) const;

 private:
  using Inputs = google::protobuf::RepeatedPtrField<qlora::v1::UploadedInput>;
  absl::Status ResolveInputs(const JobSpec& spec, Inputs& inputs) const;
  absl::Status ResolveInput(const JobSpec& spec, const std::string& field,
                            const std::string& path, Inputs& inputs) const;
  absl::StatusOr<std::string> ReadAdapterConfig(const JobSpec& spec,
                                                const Inputs& inputs) const;
  // The model roots of this process and of all nodes.
  std::vector<std::string> AllRoots() const;
  std::string NameElsewhere(const std::string& base) const;
  absl::Status CheckTokenizerOf(const JobPlan& plan,
                                const qlora::v1::ModelSource& model) const;
  absl::Status CheckChatTemplateOf(const JobPlan& plan,
                                   const qlora::v1::ModelSource& model) const;
  // A file of the model; NotFound without one, InvalidArgument if it is larger.
  absl::StatusOr<std::string> ReadOf(const qlora::v1::ModelSource& model,
                                     const std::string& name,
                                     size_t max_bytes) const;
  absl::StatusOr<ResolvedModel> ResolveDirectory(
      const std::string& directory, bool weights,
      const std::string& field) const;

  Coordinator* const coordinator_;
  ArtifactStore* const artifacts_;
  const std::vector<std::string> model_roots_;
};

}  // namespace qlora::server
