#include "worker/agent/attempt_record.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace qlora::agent {
namespace fs = std::filesystem;

namespace {

constexpr char kFile[] = "/record";

absl::StatusOr<AttemptRecord> LoadRecord(const fs::path& attempt) {
  const std::string path = attempt.string() + kFile;
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  AttemptRecord record;
  if (!record.ParseFromString(content) ||
      AttemptName(record.job_id(), record.attempt()) != attempt.filename()) {
    return absl::DataLossError(absl::StrCat(path, " is damaged"));
  }
  auto& staged = *record.mutable_staged();
  const auto is_gone = [](const v1::StagedFiles& files) {
    std::error_code error;
    return fs::status(files.directory(), error).type() ==
           fs::file_type::not_found;
  };
  staged.erase(std::remove_if(staged.begin(), staged.end(), is_gone),
               staged.end());
  return record;
}

}  // namespace

std::string AttemptName(const std::string& job_id, int32_t attempt) {
  return absl::StrCat(job_id, "-", attempt);
}

std::string AttemptDirectory(const std::string& directory,
                             const std::string& name) {
  return absl::StrCat(directory, "/attempts/", name);
}

absl::Status StoreRecord(const std::string& directory,
                         const AttemptRecord& record) {
  const std::string attempt = AttemptDirectory(
      directory, AttemptName(record.job_id(), record.attempt()));
  RETURN_IF_ERROR(CreateDirectories(attempt));
  return WriteFileAtomically(attempt + kFile, record.SerializeAsString());
}

absl::Duration RecordAge(const std::string& directory,
                         const std::string& name) {
  struct stat info;
  const std::string path = AttemptDirectory(directory, name) + kFile;
  if (::stat(path.c_str(), &info) != 0) return absl::ZeroDuration();
  return absl::Now() - absl::TimeFromTimespec(info.st_mtim);
}

std::vector<AttemptRecord> LoadRecords(const std::string& directory) {
  std::vector<AttemptRecord> records;
  std::error_code error;
  std::vector<fs::path> attempts;
  for (const auto& entry :
       fs::directory_iterator(directory + "/attempts", error)) {
    attempts.push_back(entry.path());
  }
  for (const fs::path& attempt : attempts) {
    absl::StatusOr<AttemptRecord> record = LoadRecord(attempt);
    if (record.ok()) {
      records.push_back(*std::move(record));
      continue;
    }
    LogWarning("nothing is taken over of an attempt of the last run",
               {{"attempt", attempt.filename().string()},
                {"reason", record.status()}});
    if (!absl::IsNotFound(record.status()) &&
        !absl::IsDataLoss(record.status())) {
      // What cannot be read now may be readable at the next start.
      continue;
    }
    const absl::Status removed = RemoveRecursively(attempt.string());
    if (!removed.ok()) {
      LogWarning("leftovers stay behind", {{"error", removed}});
    }
  }
  return records;
}

}  // namespace qlora::agent
