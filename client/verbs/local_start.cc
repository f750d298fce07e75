#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/interrupt.h"
#include "client/local/data_dir.h"
#include "client/local/launch.h"
#include "client/verbs.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

constexpr absl::Duration kGrace = absl::Seconds(30);

absl::StatusOr<std::vector<std::string>> AbsoluteRoots(
    const std::vector<std::string>& roots) {
  std::vector<std::string> absolute;
  for (const std::string& root : roots) {
    std::error_code error;
    const fs::path path = fs::canonical(root, error);
    if (error || !fs::is_directory(path, error)) {
      return WithWhat(absl::NotFoundError(absl::StrCat("--model-root ", root,
                                                       ": no such directory")),
                      "cannot start a local coordinator");
    }
    absolute.push_back(path.string());
  }
  if (absolute.empty()) absolute.push_back(fs::current_path().string());
  return absolute;
}

// An instance that runs with what was asked for is as good as a new one.
absl::Status CheckSame(const LocalInstance& instance,
                       const LocalStartOptions& wanted,
                       const std::vector<std::string>& roots) {
  std::string difference;
  if (wanted.cpu_ranks > 0 && wanted.cpu_ranks != instance.cpu_ranks) {
    difference = absl::StrCat("with --cpu-ranks ", instance.cpu_ranks);
  } else if (!wanted.model_roots.empty() && roots != instance.model_roots) {
    difference = absl::StrCat("with --model-root ",
                              absl::StrJoin(instance.model_roots, ", "));
  } else if (wanted.foreground) {
    difference = "in the background";
  } else {
    return absl::OkStatus();
  }
  return WithHint(WithWhat(absl::AlreadyExistsError(
                               absl::StrCat("it runs already, ", difference)),
                           "cannot start a local coordinator"),
                  "qloractl local stop");
}

// Waits for Ctrl-C or the end of either daemon.
absl::Status Supervise(const std::string& data_dir,
                       const LocalInstance& instance) {
  InterruptScope interrupt;
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
                                           bool* started) {
  ASSIGN_OR_RETURN(const std::vector<std::string> roots,
                   AbsoluteRoots(options.model_roots));
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
  if (!*started) {
    RETURN_IF_ERROR(CheckSame(*old, options, roots));
    return *old;
  }
  if (old && old->any_alive() && CheckSame(*old, options, roots).ok()) {
    return LaunchLocal(
        {data_dir, old->cpu_ranks, old->model_roots, false, old});
  }
  if (old) RETURN_IF_ERROR(StopInstance(data_dir, *old, kGrace).status());
  return LaunchLocal(
      {data_dir, options.cpu_ranks, roots, options.foreground, std::nullopt});
}

}  // namespace

absl::Status LocalStart(Session& session, const LocalStartOptions& options) {
  ASSIGN_OR_RETURN(const std::string data_dir,
                   LocalDataDir(session, options.data_dir));
  bool started = false;
  ASSIGN_OR_RETURN(const LocalInstance instance,
                   FindOrLaunch(options, data_dir, &started));
  UseLocalContext(session.config, instance.endpoint, data_dir);
  RETURN_IF_ERROR(SaveConfig(session.config_path, session.config));
  if (!started) {
    *session.output.out << "already running at " << instance.endpoint << "\n";
    return absl::OkStatus();
  }
  *session.output.out << "coordinator at " << instance.endpoint
                      << ", metrics at http://" << instance.metrics
                      << "/metrics\nworker ready, metrics at http://"
                      << instance.worker_metrics
                      << "/metrics\nstate and logs in " << data_dir
                      << "\nnext: "
                      << (options.foreground ? "Ctrl-C ends both"
                                             : "qloractl submit -f job.yaml")
                      << std::endl;
  if (!options.foreground) return absl::OkStatus();
  const absl::Status status = Supervise(data_dir, instance);
  RETURN_IF_ERROR(ForgetLocal(session, data_dir));
  return status;
}

}  // namespace qlora::client
