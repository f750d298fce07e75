#include "client/job_input.h"

#include <filesystem>
#include <iostream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "client/errors.h"
#include "client/transfer.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/spec/job_keys.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxJobFileBytes = 256 << 10;

absl::StatusOr<std::string> ReadText(const std::string& file) {
  std::error_code error;
  if (fs::is_directory(file, error)) {
    return UsageError("it is a directory; name the job file in it");
  }
  if (file != "-") return ReadFile(file);
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

// The section or key that `explain` can tell about: the nearest to a mistake.
std::string ExplainCommand(const SpecError& error) {
  std::string path = error.path.substr(0, error.path.find('['));
  while (!path.empty() && FindJobKey(path) == nullptr && !IsJobSection(path)) {
    const size_t dot = path.rfind('.');
    path.resize(dot == std::string::npos ? 0 : dot);
  }
  return absl::StrCat("qloractl explain", path.empty() ? "" : " ", path);
}

std::string NameAssignment(const std::string& name) {
  return absl::StrCat("name=", name);
}

absl::StatusOr<JobSpec> Check(const std::string& yaml,
                              const std::vector<std::string>& assignments,
                              const std::string& name,
                              const std::string& source_name) {
  ParsedJob parsed = ParseJobFile(yaml, assignments);
  if (parsed.errors.empty()) return parsed.spec;
  for (SpecError& error : parsed.errors) {
    if (!name.empty() && error.flag == SetFlag(NameAssignment(name))) {
      error.flag = absl::StrCat("--name ", name);
    }
  }
  absl::Status status = WithWhat(
      SpecErrorsToStatus(parsed.errors, source_name),
      absl::StrCat(source_name, assignments.empty() ? "" : " with these flags",
                   " is not a valid job file"));
  return WithHint(std::move(status), ExplainCommand(parsed.errors[0]));
}

// False also for what cannot be a path, such as a long inline template.
bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// A relative path has to be here; an absolute one may be a worker's.
absl::Status CheckDataFiles(const JobInput& job) {
  for (const std::string& path : NamedPaths(job.spec)) {
    const fs::path local = fs::path(job.directory) / path;
    if (fs::path(path).is_absolute() || Exists(local)) continue;
    return WithHint(
        WithWhat(
            absl::NotFoundError(absl::StrCat("no such file: ", local.string())),
            absl::StrCat("cannot find ", path, ", which the job file names")),
        "qloractl dataset list");
  }
  return absl::OkStatus();
}

// Whether a worker of this machine, or of one that shares the directory, reads
// the file where it lies.
absl::StatusOr<bool> WorkersHave(Connection& connection,
                                 const std::string& path) {
  const absl::StatusOr<v1::ListNodesResponse> nodes =
      connection.Call(connection.nodes(), &v1::NodeService::Stub::ListNodes,
                      v1::ListNodesRequest());
  if (!nodes.ok()) return WithWhat(nodes.status(), "cannot list the nodes");
  for (const v1::Node& node : nodes->nodes()) {
    const auto& roots = node.model_roots();
    if (IsBeneathOneOf(path, {roots.begin(), roots.end()})) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<JobInput> ReadJob(const std::string& file,
                                 const std::vector<std::string>& set,
                                 const std::string& name) {
  const absl::StatusOr<std::string> text = ReadText(file);
  if (!text.ok()) {
    return WithHint(WithWhat(text.status(),
                             absl::StrCat("cannot read the job file ", file)),
                    "qloractl init");
  }
  if (text->size() > kMaxJobFileBytes) {
    return WithHint(
        WithWhat(absl::InvalidArgumentError("it is larger than 256 KiB"),
                 absl::StrCat(file, " is no job file")),
        "qloractl init");
  }
  JobInput job;
  job.directory =
      file == "-"
          ? fs::current_path().string()
          : fs::absolute(file).parent_path().lexically_normal().string();
  std::vector<std::string> assignments = set;
  if (!name.empty()) assignments.push_back(NameAssignment(name));
  const std::string source = file == "-" ? "standard input" : file;
  ASSIGN_OR_RETURN(job.spec, Check(*text, assignments, name, source));
  ASSIGN_OR_RETURN(job.yaml, ApplyOverrides(*text, assignments));
  const fs::path base = fs::path(job.directory) / job.spec.model.base;
  std::error_code error;
  if (!fs::path(job.spec.model.base).is_absolute() &&
      fs::is_directory(base, error)) {
    job.spec.model.base = fs::canonical(base).string();
    ASSIGN_OR_RETURN(
        job.yaml,
        ApplyOverrides(job.yaml,
                       {absl::StrCat("model.base=", job.spec.model.base)}));
  }
  RETURN_IF_ERROR(CheckDataFiles(job));
  return job;
}

std::vector<std::string> ServerPaths(const JobSpec& spec) {
  std::vector<std::string> paths = NamedPaths(spec);
  paths.push_back(spec.model.base);
  return paths;
}

absl::StatusOr<std::vector<v1::UploadedInput>> UploadInputs(
    Connection& connection, const JobInput& job, ProgressLine& progress) {
  std::vector<v1::UploadedInput> inputs;
  for (const std::string& path : NamedPaths(job.spec)) {
    const std::string local = (fs::path(job.directory) / path).string();
    if (!Exists(local)) continue;
    if (fs::path(path).is_absolute() && path != job.spec.data.chat_template) {
      ASSIGN_OR_RETURN(const bool there, WorkersHave(connection, local));
      if (there) continue;
    }
    v1::UploadedInput input;
    input.set_path(path);
    if (fs::is_directory(local)) {
      ASSIGN_OR_RETURN(const std::vector<std::string> names,
                       VisibleFiles(local));
      ASSIGN_OR_RETURN(const std::vector<v1::ArtifactFile> files,
                       UploadDirectory(connection, local, names, progress));
      input.mutable_files()->Assign(files.begin(), files.end());
    } else {
      ASSIGN_OR_RETURN(
          *input.add_files(),
          UploadFile(connection, local, fs::path(path).filename().string(),
                     progress));
    }
    inputs.push_back(std::move(input));
  }
  progress.Clear();
  return inputs;
}

}  // namespace qlora::client
