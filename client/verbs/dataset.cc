#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "client/data_file.h"
#include "client/names.h"
#include "client/records.h"
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

absl::StatusOr<v1::Dataset> Find(Session& session, const std::string& name) {
  v1::GetDatasetRequest request;
  request.set_name(name);
  return session.connection().Call(session.connection().datasets(),
                                   &v1::DatasetService::Stub::GetDataset,
                                   request);
}

// The same push with one more flag.
std::string PushCommand(const DatasetPushOptions& options,
                        const std::string& flag) {
  std::string command =
      absl::StrCat("qloractl dataset push ", ShellWord(options.file));
  if (!options.name.empty()) {
    absl::StrAppend(&command, " --name ", ShellWord(options.name));
  }
  if (options.replace) absl::StrAppend(&command, " --replace");
  if (options.allow_bad) absl::StrAppend(&command, " --allow-bad");
  return absl::StrCat(command, " ", flag);
}

absl::Status CheckFile(const DatasetPushOptions& options) {
  const std::string& file = options.file;
  std::error_code error;
  const absl::Status status = fs::exists(file, error)
                                  ? CheckDataFile(file, file)
                                  : absl::NotFoundError("no such file");
  const std::string what = absl::StrCat("cannot push ", file);
  if (!status.ok() || options.allow_bad) return WithWhat(status, what);
  bool any_good = false;
  const absl::Status records =
      WithWhat(CheckRecords(file, file, &any_good), what);
  // Of bad records alone no job can make anything.
  if (!any_good) return records;
  return WithHint(records, PushCommand(options,
                                       "--allow-bad  # for jobs with "
                                       "data.on_bad_record: skip"));
}

}  // namespace

absl::Status DatasetPush(Session& session, const DatasetPushOptions& options) {
  const std::string& file = options.file;
  RETURN_IF_ERROR(CheckFile(options));
  ProgressLine progress(session.output.terminal.err);
  v1::PutDatasetRequest request;
  request.set_request_id(NewRequestId());
  request.set_replace(options.replace);
  ASSIGN_OR_RETURN(*request.mutable_name(),
                   ChooseName(options.name, fs::path(file).stem().string()));
  ASSIGN_OR_RETURN(*request.mutable_file(),
                   UploadFile(session.connection(), file,
                              fs::path(file).filename().string(), progress));
  progress.Clear();
  const absl::StatusOr<v1::Dataset> before = Find(session, request.name());
  const absl::StatusOr<v1::Dataset> dataset = session.connection().Call(
      session.connection().datasets(), &v1::DatasetService::Stub::PutDataset,
      request, kSubmitDeadline);
  if (absl::IsAlreadyExists(dataset.status())) {
    return WithHint(
        WithWhat(dataset.status(),
                 absl::StrCat("will not replace dataset ", request.name())),
        PushCommand(options, "--replace"));
  }
  if (!dataset.ok()) {
    return WithWhat(dataset.status(),
                    absl::StrCat("cannot name dataset ", request.name()));
  }
  if (before.ok() && before->file().sha256() == dataset->file().sha256()) {
    std::cerr << request.name() << " has this content already\n";
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
  const absl::StatusOr<v1::Dataset> dataset = Find(session, name);
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
