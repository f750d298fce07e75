#include "client/job_input.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/data_file.h"
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
  return WithHint(std::move(status), ExplainCommand(parsed.errors[0].path));
}

// False also for what cannot be a path, such as a long inline template.
bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// A path in the job file, and the key that explains it.
struct Named {
  std::string key;
  std::string path;
  // What has to be there: records, an adapter, or just a file.
  enum { kData, kAdapter, kTemplate } kind;
};

std::vector<Named> NamedFiles(const JobSpec& spec) {
  std::vector<Named> all;
  const std::vector<std::string> paths = NamedPaths(spec);
  const auto add = [&](const char* key, const std::string& path, auto kind) {
    // Registered names and a template's own text are no paths.
    if (std::find(paths.begin(), paths.end(), path) != paths.end()) {
      all.push_back({key, path, kind});
    }
  };
  for (const DataSource& source : spec.data.train) {
    add("data.train", source.path, Named::kData);
  }
  for (const DataSource& source : spec.data.eval) {
    add("data.eval", source.path, Named::kData);
  }
  add("lora.init_adapter", spec.lora.init_adapter, Named::kAdapter);
  add("data.chat_template", spec.data.chat_template, Named::kTemplate);
  return all;
}

absl::Status CheckContent(const Named& named, const std::string& local) {
  switch (named.kind) {
    case Named::kData:
      return CheckDataFile(local, named.path);
    case Named::kAdapter:
      if (Exists(fs::path(local) / "adapter_config.json")) break;
      return absl::InvalidArgumentError(
          absl::StrCat(named.path,
                       " is no directory with an adapter: there is no "
                       "adapter_config.json in it"));
    case Named::kTemplate:
      if (!fs::is_directory(local)) break;
      return absl::InvalidArgumentError(absl::StrCat(
          named.path, " is a directory; name the template's file"));
  }
  return absl::OkStatus();
}

absl::Status CannotFind(const std::string& key, const std::string& path,
                        const std::string& cause) {
  return WithHint(WithWhat(absl::NotFoundError(cause),
                           absl::StrCat("cannot find ", path,
                                        ", which the job file names")),
                  absl::StrCat("qloractl explain ", key));
}

// A relative path has to be here; an absolute one may be a worker's.
absl::Status CheckDataFiles(const JobInput& job) {
  for (const Named& named : NamedFiles(job.spec)) {
    const fs::path local = fs::path(job.directory) / named.path;
    if (Exists(local)) {
      const absl::Status fine = CheckContent(named, local.string());
      if (fine.ok()) continue;
      return WithHint(WithWhat(fine, absl::StrCat("cannot use ", named.path,
                                                  " as ", named.key)),
                      absl::StrCat("qloractl explain ", named.key));
    }
    if (fs::path(named.path).is_absolute()) continue;
    return CannotFind(named.key, named.path,
                      absl::StrCat("no such file: ", local.string()));
  }
  return absl::OkStatus();
}

// Makes a relative directory absolute. What is no directory here is a name, and
// the server's to look for.
absl::Status ResolveBase(JobInput* job) {
  const fs::path named = job->spec.model.base;
  if (named.is_absolute()) return absl::OkStatus();
  const fs::path local = (fs::path(job->directory) / named).lexically_normal();
  std::error_code error;
  if (!fs::is_directory(local, error)) {
    // A name begins with neither.
    if (!absl::StartsWith(named.string(), "./") &&
        !absl::StartsWith(named.string(), "../")) {
      return absl::OkStatus();
    }
    return CannotFind("model.base", named.string(),
                      absl::StrCat("no such directory: ", local.string()));
  }
  job->spec.model.base = fs::canonical(local).string();
  ASSIGN_OR_RETURN(
      job->yaml,
      ApplyOverrides(job->yaml,
                     {absl::StrCat("model.base=", job->spec.model.base)}));
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

std::string ExplainCommand(std::string place) {
  place.resize(std::min(place.size(), place.find('[')));
  while (!place.empty() && FindJobKey(place) == nullptr &&
         !IsJobSection(place)) {
    const size_t dot = place.rfind('.');
    place.resize(dot == std::string::npos ? 0 : dot);
  }
  return absl::StrCat("qloractl explain", place.empty() ? "" : " ", place);
}

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
  RETURN_IF_ERROR(ResolveBase(&job));
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
