#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/names.h"
#include "client/pull.h"
#include "client/render.h"
#include "client/transfer.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

// What of a model's directory is of use to a trainer: weights, configuration,
// tokenizer, template; not other frameworks' copies of the weights.
bool IsModelFile(const std::string& path) {
  for (const char* extension :
       {".json", ".safetensors", ".jinja", ".txt", ".model"}) {
    if (absl::EndsWith(path, extension)) return true;
  }
  return false;
}

absl::Status FillFiles(Session& session, const std::string& directory,
                       v1::ImportModelRequest* request) {
  ProgressLine progress(session.output.terminal.err);
  ASSIGN_OR_RETURN(std::vector<std::string> paths, VisibleFiles(directory));
  std::erase_if(paths, [](const std::string& p) { return !IsModelFile(p); });
  ASSIGN_OR_RETURN(
      const std::vector<v1::ArtifactFile> files,
      UploadDirectory(session.connection(), directory, paths, progress));
  request->mutable_files()->Assign(files.begin(), files.end());
  return absl::OkStatus();
}

// The server names an uploaded file as it is called in the directory.
absl::Status AtUsersPath(const absl::Status& status,
                         const v1::ImportModelRequest& request,
                         const std::string& directory) {
  for (const v1::ArtifactFile& file : request.files()) {
    if (absl::StartsWith(status.message(), absl::StrCat(file.path(), ":"))) {
      const fs::path path = fs::path(directory) / std::string(status.message());
      return absl::Status(status.code(), path.string());
    }
  }
  return status;
}

absl::Status ModelError(absl::Status status, const std::string& what) {
  if (absl::IsNotFound(status)) {
    status = WithHint(std::move(status), "qloractl model list");
  }
  return WithWhat(std::move(status), what);
}

absl::StatusOr<v1::Model> FindModel(Session& session, const std::string& name) {
  v1::GetModelRequest request;
  request.set_name(name);
  return session.connection().Call(session.connection().models(),
                                   &v1::ModelService::Stub::GetModel, request);
}

// Its files where they were uploaded; those of a registered directory stay
// there.
absl::Status PullImported(Session& session, const v1::Model& model,
                          const PullOptions& options) {
  if (model.directory().empty()) {
    return PullFiles(session, model.files(), options);
  }
  return WithWhat(
      absl::FailedPreconditionError(absl::StrCat(
          "its files lie in ", model.directory(), " on the workers' machines")),
      absl::StrCat("model ", model.name(),
                   " was imported by reference: there is nothing to pull"));
}

}  // namespace

absl::Status ModelImport(Session& session, const ModelImportOptions& options) {
  const std::string what = absl::StrCat("cannot import ", options.directory);
  std::error_code error;
  const fs::path directory = fs::canonical(options.directory, error);
  if (error || !fs::is_directory(directory, error)) {
    return WithWhat(absl::NotFoundError("no such directory"), what);
  }
  v1::ImportModelRequest request;
  request.set_request_id(NewRequestId());
  ASSIGN_OR_RETURN(*request.mutable_name(),
                   ChooseName(options.name, directory.filename().string()));
  if (options.upload || !session.connection().is_local()) {
    RETURN_IF_ERROR(FillFiles(session, directory.string(), &request));
  } else {
    request.set_directory(directory.string());
  }
  const absl::StatusOr<v1::Model> model = session.connection().Call(
      session.connection().models(), &v1::ModelService::Stub::ImportModel,
      request, kSubmitDeadline);
  if (absl::IsAlreadyExists(model.status())) {
    return WithHint(WithWhat(model.status(), what),
                    absl::StrCat("qloractl model import ", options.directory,
                                 " --name ANOTHER"));
  }
  if (!model.ok()) {
    return WithWhat(
        WithRemedy(session,
                   AtUsersPath(model.status(), request, options.directory),
                   {directory.string()}),
        what);
  }
  return PrintOne(session.output, *model, ModelView(absl::Now()));
}

absl::Status ModelList(Session& session) {
  v1::ListModelsRequest request;
  v1::ListModelsResponse all;
  do {
    absl::StatusOr<v1::ListModelsResponse> page =
        session.connection().Call(session.connection().models(),
                                  &v1::ModelService::Stub::ListModels, request);
    if (!page.ok()) return WithWhat(page.status(), "cannot list the models");
    request.set_page_token(page->next_page_token());
    all.mutable_models()->MergeFrom(page->models());
  } while (!request.page_token().empty());
  return PrintList(session.output, all, all.models(), ModelView(absl::Now()));
}

absl::Status ModelInspect(Session& session, const std::string& name) {
  const absl::StatusOr<v1::Model> model = FindModel(session, name);
  if (!model.ok()) {
    return ModelError(model.status(), absl::StrCat("cannot get model ", name));
  }
  if (session.output.format == OutputFormat::kTable) {
    ASSIGN_OR_RETURN(const std::string text, ToYaml(*model));
    *session.output.out << text;
    return absl::OkStatus();
  }
  return PrintOne(session.output, *model, ModelView(absl::Now()));
}

absl::Status ModelDelete(Session& session, const std::string& name) {
  v1::DeleteModelRequest request;
  request.set_request_id(NewRequestId());
  request.set_name(name);
  const absl::Status deleted =
      session.connection()
          .Call(session.connection().models(),
                &v1::ModelService::Stub::DeleteModel, request)
          .status();
  if (!deleted.ok()) {
    return ModelError(deleted, absl::StrCat("cannot delete model ", name));
  }
  *session.output.out << name << " deleted" << std::endl;
  return absl::OkStatus();
}

absl::Status ModelPull(Session& session, const PullOptions& options) {
  const absl::StatusOr<v1::Job> found = FetchJob(session, options.job);
  if (absl::IsNotFound(found.status())) {
    const absl::StatusOr<v1::Model> model = FindModel(session, options.job);
    if (model.ok()) return PullImported(session, *model, options);
    if (absl::IsNotFound(model.status())) {
      return ModelError(
          absl::NotFoundError("no imported model and no job is called so"),
          absl::StrCat("cannot pull model ", options.job));
    }
  }
  RETURN_IF_ERROR(found.status());
  const v1::Job& job = *found;
  if (job.method() != "full") {
    return WithHint(
        WithWhat(absl::FailedPreconditionError(
                     absl::StrCat("its method is ", job.method())),
                 absl::StrCat("job ", options.job, " made no whole model")),
        absl::StrCat("qloractl adapter pull ", job.job_id(), " --to ",
                     options.to));
  }
  return PullOutput(session, job, options);
}

}  // namespace qlora::client
