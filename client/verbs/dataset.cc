#include <filesystem>

#include "absl/strings/str_cat.h"
#include "client/render.h"
#include "client/transfer.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

absl::Status DatasetError(absl::Status status, const std::string& what) {
  if (absl::IsNotFound(status)) {
    status = WithHint(std::move(status), "qloractl dataset list");
  }
  return WithWhat(std::move(status), what);
}

}  // namespace

absl::Status DatasetPush(Session& session, const std::string& file,
                         const std::string& name) {
  std::error_code error;
  if (!fs::is_regular_file(file, error)) {
    return absl::NotFoundError(absl::StrCat("no such file: ", file));
  }
  ProgressLine progress(session.output.terminal.err);
  v1::PutDatasetRequest request;
  request.set_request_id(NewRequestId());
  request.set_name(name.empty() ? fs::path(file).stem().string() : name);
  ASSIGN_OR_RETURN(*request.mutable_file(),
                   UploadFile(session.connection(), file,
                              fs::path(file).filename().string(), progress));
  progress.Clear();
  const absl::StatusOr<v1::Dataset> dataset = session.connection().Call(
      session.connection().datasets(), &v1::DatasetService::Stub::PutDataset,
      request, kSubmitDeadline);
  if (!dataset.ok()) {
    return WithWhat(dataset.status(),
                    absl::StrCat("cannot name dataset ", request.name()));
  }
  return PrintOne(session.output, *dataset, DatasetView(absl::Now()));
}

absl::Status DatasetList(Session& session) {
  v1::ListDatasetsRequest request;
  v1::ListDatasetsResponse all;
  do {
    absl::StatusOr<v1::ListDatasetsResponse> page = session.connection().Call(
        session.connection().datasets(),
        &v1::DatasetService::Stub::ListDatasets, request);
    if (!page.ok()) return WithWhat(page.status(), "cannot list the datasets");
    request.set_page_token(page->next_page_token());
    all.mutable_datasets()->MergeFrom(page->datasets());
  } while (!request.page_token().empty());
  return PrintList(session.output, all, all.datasets(),
                   DatasetView(absl::Now()));
}

absl::Status DatasetInspect(Session& session, const std::string& name) {
  v1::GetDatasetRequest request;
  request.set_name(name);
  const absl::StatusOr<v1::Dataset> dataset =
      session.connection().Call(session.connection().datasets(),
                                &v1::DatasetService::Stub::GetDataset, request);
  if (!dataset.ok()) {
    return DatasetError(dataset.status(),
                        absl::StrCat("cannot get dataset ", name));
  }
  if (session.output.format == OutputFormat::kTable) {
    ASSIGN_OR_RETURN(const std::string text, ToYaml(*dataset));
    *session.output.out << text;
    return absl::OkStatus();
  }
  return PrintOne(session.output, *dataset, DatasetView(absl::Now()));
}

absl::Status DatasetDelete(Session& session, const std::string& name) {
  v1::DeleteDatasetRequest request;
  request.set_request_id(NewRequestId());
  request.set_name(name);
  const absl::Status deleted =
      session.connection()
          .Call(session.connection().datasets(),
                &v1::DatasetService::Stub::DeleteDataset, request)
          .status();
  if (!deleted.ok()) {
    return DatasetError(deleted, absl::StrCat("cannot delete dataset ", name));
  }
  *session.output.out << name << " deleted" << std::endl;
  return absl::OkStatus();
}

}  // namespace qlora::client
