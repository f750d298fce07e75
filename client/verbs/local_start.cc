#include <csignal>
#include <filesystem>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/interrupt.h"
#include "client/local/data_dir.h"
#include "client/local/launch.h"
#include "client/verbs.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

constexpr absl::Duration kGrace = absl::Seconds(30);

constexpr char kCannotStart[] = "cannot start a local coordinator";

// local.json, the configuration and the protocol hold paths as UTF-8.
absl::Status CheckText(const std::string& what, const std::string& path) {
  const std::string valid = ToValidUtf8(path);
  if (valid == path) return absl::OkStatus();
  return WithWhat(
      UsageError(absl::StrCat(what, " ", valid,
                              ": its name is not UTF-8; rename it, or give "
                              "another directory")),
      kCannotStart);
}

absl::StatusOr<std::vector<std::string>> AbsoluteRoots(
    const std::vector<std::string>& roots) {
  std::vector<std::string> absolute;
  for (const std::string& root : roots) {
    std::error_code error;
    const fs::path path = fs::canonical(root, error);
    if (error || !fs::is_directory(path, error)) {
      return WithWhat(absl::NotFoundError(absl::StrCat("--model-root ", root,
                                                       ": no such directory")),
                      kCannotStart);
    }
    absolute.push_back(path.string());
  }
  if (absolute.empty()) absolute.push_back(fs::current_path().string());
  for (const std::string& root : absolute) {
    RETURN_IF_ERROR(CheckText("model root", root));
  }
  return absolute;
}

// "the coordinator (pid 12) and the worker (pid 13) run already in DIR".
std::string WhatRuns(const LocalInstance& instance,
                     const std::string& data_dir) {
  std::vector<std::string> running, ended;
  const auto add = [&](const std::string& daemon, const ProcessId& process) {
    if (IsAlive(process)) {
      running.push_back(
          absl::StrCat("the ", daemon, " (pid ", process.pid, ")"));
    } else {
      ended.push_back(absl::StrCat("; the ", daemon, " has ended"));
    }
  };
  add("coordinator", instance.coordinator);
  add("worker", instance.worker);
  return absl::StrCat(absl::StrJoin(running, " and "),
                      running.size() > 1 ? " run" : " runs", " already in ",
                      data_dir, absl::StrJoin(ended, ""));
}

// An instance that runs, if only one of its daemons, with what was asked for is
// as good as a new one. Another is never ended for the sake of a flag: it may
// be training.
absl::Status CheckSame(const Session& session, const LocalInstance& instance,
                       const LocalStartOptions& wanted,
                       const std::vector<std::string>& roots,
                       const std::string& data_dir) {
  std::vector<std::string> differences;
  if (wanted.cpu_ranks > 0 && wanted.cpu_ranks != instance.cpu_ranks) {
    differences.push_back(
        instance.cpu_ranks == 0
            ? "without --cpu-ranks"
            : absl::StrCat("with --cpu-ranks ", instance.cpu_ranks));
  }
  if (!wanted.model_roots.empty() && roots != instance.model_roots) {
    differences.push_back(absl::StrCat(
        "with --model-root ", absl::StrJoin(instance.model_roots, ", ")));
  }
  if (wanted.foreground) differences.push_back("without --foreground");
  if (differences.empty()) return absl::OkStatus();
  std::string cause =
      absl::StrCat(WhatRuns(instance, data_dir), "\nit was started ",
                   absl::StrJoin(differences, " and "));
  if (!instance.both_alive()) {
    absl::StrAppend(&cause, "; qloractl local start without ",
                    differences.size() > 1 ? "these flags" : "this flag",
                    " starts again what has ended and keeps what runs");
  }
  return WithHint(
      WithWhat(absl::AlreadyExistsError(cause),
               "cannot start a local coordinator and worker with these flags"),
      StopCommand(session, data_dir));
}

// "7070, 9464": the usual ports at which the instance does not listen.
std::string TakenPorts(const LocalInstance& instance) {
  std::vector<int> taken;
  for (const auto& [address, port] :
       {std::pair(instance.endpoint, kUsualPort),
        std::pair(instance.metrics, kUsualMetricsPort),
        std::pair(instance.worker_metrics, kUsualWorkerMetricsPort)}) {
    if (!absl::EndsWith(address, absl::StrCat(":", port))) {
      taken.push_back(port);
    }
  }
  return absl::StrJoin(taken, ", ");
}

// What to type once both run.
std::string NextStep(Session& session, const LocalInstance& instance) {
  Connection connection(instance.endpoint);
  v1::ListJobsRequest request;
  request.set_project(session.project);
  request.set_page_size(1);
  const absl::StatusOr<v1::ListJobsResponse> jobs = connection.Call(
      connection.jobs(), &v1::JobService::Stub::ListJobs, request);
  return jobs.ok() && jobs->jobs_size() > 0 ? "qloractl list" : "qloractl init";
}

// Waits for Ctrl-C, a service manager's SIGTERM, the terminal's end, or the end
// of either daemon.
absl::Status Supervise(const std::string& data_dir,
                       const LocalInstance& instance) {
  InterruptScope interrupt({SIGINT, SIGTERM, SIGHUP});
  while (!InterruptScope::Interrupted() && instance.both_alive()) {
    absl::SleepFor(absl::Milliseconds(100));
  }
  const bool failed = !InterruptScope::Interrupted();
  const std::string dead =
      IsAlive(instance.coordinator) ? "qlora-worker" : "qlora-coordinator";
  RETURN_IF_ERROR(StopInstance(data_dir, instance, kGrace).status());
  if (failed) {
    return WithHint(WithWhat(absl::InternalError(absl::StrCat(
                                 dead, " ended; its last lines are above")),
                             "the local coordinator and worker were stopped"),
                    "qloractl local start --foreground");
  }
  return absl::OkStatus();
}

// Finds the instance that runs already (*started is false) or starts one.
absl::StatusOr<LocalInstance> FindOrLaunch(const LocalStartOptions& options,
                                           const std::string& data_dir,
                                           const Session& session,
                                           bool* started) {
  ASSIGN_OR_RETURN(const std::vector<std::string> roots,
                   AbsoluteRoots(options.model_roots));
  RETURN_IF_ERROR(CheckText("data directory", data_dir));
  RETURN_IF_ERROR(CreateDirectories(data_dir));
  // One start at a time.
  const absl::StatusOr<DirectoryLock> lock = DirectoryLock::Acquire(data_dir);
  if (!lock.ok()) {
    return WithHint(
        WithWhat(lock.status(), "another qloractl local start is at work"),
        "qloractl local status");
  }
  ASSIGN_OR_RETURN(const std::optional<LocalInstance> old,
                   LoadInstance(data_dir));
  *started = !old || !old->both_alive();
  if (old && old->any_alive()) {
    RETURN_IF_ERROR(CheckSame(session, *old, options, roots, data_dir));
    if (!*started) return *old;
    return LaunchLocal({.data_dir = data_dir,
                        .cpu_ranks = old->cpu_ranks,
                        .model_roots = old->model_roots,
                        .remains = old});
  }
  // What died comes back as it was, but for what the flags say.
  const bool keep_ranks = old && options.cpu_ranks == 0;
  const bool keep_roots = old && options.model_roots.empty();
  return LaunchLocal(
      {.data_dir = data_dir,
       .cpu_ranks = keep_ranks ? old->cpu_ranks : options.cpu_ranks,
       .model_roots = keep_roots ? old->model_roots : roots,
       .foreground = options.foreground,
       .reserved = OrphanedEndpoints(session, data_dir)});
}

}  // namespace

absl::Status LocalStart(Session& session, const LocalStartOptions& options) {
  // It has to be noted there once they run.
  RETURN_IF_ERROR(WithWhat(ConfigPath().status(), kCannotStart));
  ASSIGN_OR_RETURN(const std::string data_dir,
                   LocalDataDir(session, options.data_dir));
  bool started = false;
  ASSIGN_OR_RETURN(const LocalInstance instance,
                   FindOrLaunch(options, data_dir, session, &started));
  std::ostream& out = *session.output.out;
  if (!started) {
    out << "already running at " << instance.endpoint << "\n";
  } else {
    out << "coordinator at " << instance.endpoint << ", metrics at http://"
        << instance.metrics << "/metrics\nworker ready, metrics at http://"
        << instance.worker_metrics << "/metrics\n";
    const std::string taken = TakenPorts(instance);
    if (!taken.empty()) {
      out << "free ports in place of the usual " << taken
          << ", which others had taken\n";
    }
  }
  out << "state and logs in " << data_dir << "\nmodels below "
      << absl::StrJoin(instance.model_roots, ", ") << "\n";
  RETURN_IF_ERROR(UseLocal(session, instance.endpoint, data_dir));
  if (!started) return absl::OkStatus();
  out << "next: "
      << (options.foreground ? "Ctrl-C ends both" : NextStep(session, instance))
      << std::endl;
  if (!options.foreground) return absl::OkStatus();
  const absl::Status status = Supervise(data_dir, instance);
  RETURN_IF_ERROR(ForgetLocal(session, data_dir));
  return status;
}

}  // namespace qlora::client
