#include "client/job_calls.h"

#include <algorithm>
#include <filesystem>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/errors.h"
#include "client/job_input.h"
#include "client/local/data_dir.h"
#include "client/names.h"
#include "client/render.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

// The job file names a registered `kind` of thing, and there is none.
bool NamesNoneOf(const std::string& message, const std::string& kind) {
  return absl::StrContains(message, absl::StrCat(": no ", kind));
}

// Everything below would be readable for whoever submits jobs.
bool IsSystemDirectory(const fs::path& path) {
  const auto parts = std::distance(path.begin(), path.end());
  if (parts <= 2) return true;  // "/" and "/etc"
  const fs::path top = *std::next(path.begin());
  for (const char* name : {"boot", "dev", "etc", "proc", "sys"}) {
    if (top == name) return true;
  }
  return false;
}

// What makes a path usable that is under none of the model roots.
std::string RootRemedy(const Session& session, const fs::path& named) {
  std::error_code error;
  const fs::path path = fs::canonical(named, error);
  if (error) {
    return absl::StrCat("correct the path: there is no ", named.string(),
                        " on this machine");
  }
  if (!fs::exists(path / "config.json", error)) {
    return absl::StrCat("correct the path: ", named.string(),
                        " is no model, it has no config.json");
  }
  const std::string restart =
      IsSystemDirectory(path) ? "" : RestartCommand(session, path.string());
  if (!restart.empty()) return restart;
  const std::string name = RegistryName(path.filename().string());
  return absl::StrCat(
      "qloractl model import ", ShellWord(path.string()),
      name.empty() ? " --name NAME" : "",
      " --upload  # then name it as the model: ", name.empty() ? "NAME" : name);
}

bool ExplainsKey(const std::string& place) {
  return !absl::StrContains(place, ' ') &&
         ExplainCommand(place) != ExplainCommand("");
}

}  // namespace

absl::Status JobError(absl::Status status, const std::string& what) {
  if (absl::StartsWith(status.message(), "there are no jobs")) {
    status = WithHint(std::move(status), "qloractl submit -f job.yaml");
  } else if (absl::IsNotFound(status) ||
             absl::StrContains(status.message(), " is the beginning of ")) {
    status = WithHint(std::move(status), "qloractl list");
  }
  return WithWhat(std::move(status), what);
}

int ForEachJob(const std::vector<std::string>& jobs,
               const std::function<absl::Status(const std::string& job)>& act) {
  int code = kExitOk;
  for (const std::string& job : jobs) {
    const absl::Status status = act(job);
    if (status.ok()) continue;
    std::cerr << FormatError(status) << std::flush;
    if (code == kExitOk) code = ExitCodeFor(status);
    if (ExitCodeFor(status) == kExitUnavailable) break;
  }
  return code;
}

absl::Status PrintChanged(const Output& output, const v1::Job& job,
                          const std::string& words) {
  if (output.format == OutputFormat::kName) {
    return PrintOne(output, job, JobView(absl::Now()));
  }
  if (IsForPrograms(output.format)) return PrintRecord(output, job);
  *output.out << job.job_id() << " " << words << std::endl;
  return absl::OkStatus();
}

absl::Status WithRemedy(Session& session, absl::Status status,
                        const std::vector<std::string>& paths) {
  const std::string message(status.message());
  for (const char* kind : {"model", "dataset", "adapter"}) {
    if (NamesNoneOf(message, kind)) {
      return WithHint(std::move(status),
                      absl::StrCat("qloractl ", kind, " list"));
    }
  }
  for (const fs::path path : paths) {
    if (!session.connection().is_local()) break;
    const fs::path named = path.has_filename() ? path : path.parent_path();
    if (absl::StrContains(message,
                          absl::StrCat(named.string(),
                                       " is under none of the model roots"))) {
      return WithHint(std::move(status), RootRemedy(session, named));
    }
  }
  const std::string place = message.substr(0, message.find(": "));
  if (absl::IsInvalidArgument(status) && ExplainsKey(place)) {
    status = WithHint(std::move(status), ExplainCommand(place));
  }
  return status;
}

absl::StatusOr<v1::Job> FetchJob(Session& session, const std::string& job) {
  v1::GetJobRequest request;
  request.set_job(job);
  request.set_project(session.project);
  absl::StatusOr<v1::Job> found = session.connection().Call(
      session.connection().jobs(), &v1::JobService::Stub::GetJob, request);
  if (found.ok()) return found;
  return JobError(found.status(), absl::StrCat("cannot get job ", job));
}

absl::Status AwaitCoordinator(Session& session, const std::string& job_id,
                              absl::Time end) {
  std::cerr << kAwayNote << std::endl;
  v1::GetJobRequest request;
  request.set_job(job_id);
  request.set_project(session.project);
  while (absl::Now() < end) {
    // First, since one that shuts down still answers for a moment.
    absl::SleepFor(std::min(kReconnectPause, end - absl::Now()));
    const absl::StatusOr<v1::Job> job = session.connection().Call(
        session.connection().jobs(), &v1::JobService::Stub::GetJob, request);
    if (job.ok()) {
      std::cerr << kBackNote << std::endl;
      return absl::OkStatus();
    }
    if (!absl::IsUnavailable(job.status()) &&
        !absl::IsDeadlineExceeded(job.status())) {
      return job.status();
    }
  }
  return absl::OkStatus();
}

void NoteDetached(const std::string& job_id, const std::string& why) {
  std::cerr << "detached (" << why << "); the job goes on\nnext: qloractl wait "
            << job_id << std::endl;
}

absl::StatusOr<v1::QueryMetricsResponse> FetchMetrics(Session& session,
                                                      const std::string& job,
                                                      int max_points) {
  v1::QueryMetricsRequest request;
  request.set_job(job);
  request.set_project(session.project);
  request.set_max_points(max_points);
  absl::StatusOr<v1::QueryMetricsResponse> response =
      session.connection().Call(session.connection().jobs(),
                                &v1::JobService::Stub::QueryMetrics, request);
  if (!response.ok()) {
    return JobError(response.status(),
                    absl::StrCat("cannot get the metrics of job ", job));
  }
  if (max_points == 0 && response->points_size() < response->logged_points()) {
    std::cerr << "note: " << response->points_size() << " of "
              << response->logged_points()
              << " logged steps, evenly spaced: one answer holds no more\n";
  }
  return response;
}

absl::StatusOr<std::vector<v1::JobEvent>> FetchEvents(Session& session,
                                                      const std::string& job) {
  v1::StreamEventsRequest request;
  request.set_job(job);
  request.set_project(session.project);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallDeadline));
  const auto reader =
      session.connection().jobs().StreamEvents(&context, request);
  std::vector<v1::JobEvent> events;
  v1::JobEvent event;
  while (reader->Read(&event)) events.push_back(event);
  const absl::Status status = session.connection().ToStatus(reader->Finish());
  if (!status.ok()) {
    return JobError(status, absl::StrCat("cannot get the events of job ", job));
  }
  return events;
}

absl::StatusOr<v1::ListCheckpointsResponse> FetchCheckpoints(
    Session& session, const std::string& job) {
  v1::ListCheckpointsRequest request;
  request.set_job(job);
  request.set_project(session.project);
  absl::StatusOr<v1::ListCheckpointsResponse> response =
      session.connection().Call(session.connection().checkpoints(),
                                &v1::CheckpointService::Stub::ListCheckpoints,
                                request);
  if (response.ok()) return response;
  return JobError(response.status(),
                  absl::StrCat("cannot list the checkpoints of job ", job));
}

}  // namespace qlora::client
