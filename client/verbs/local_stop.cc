#include <map>

#include "absl/strings/str_cat.h"
#include "client/local/data_dir.h"
#include "client/local/instance.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

constexpr absl::Duration kAnswer = absl::Seconds(2);

// Jobs that hold devices now, and their states where this project's; none too
// where nobody answers.
std::map<std::string, v1::JobState> RunningJobs(const LocalInstance& instance,
                                                const std::string& project) {
  std::map<std::string, v1::JobState> jobs;
  if (!IsAlive(instance.coordinator)) return jobs;
  Connection connection(instance.endpoint);
  const absl::StatusOr<v1::ListNodesResponse> nodes =
      connection.Call(connection.nodes(), &v1::NodeService::Stub::ListNodes,
                      v1::ListNodesRequest(), kAnswer);
  if (!nodes.ok()) return jobs;
  for (const v1::Node& node : nodes->nodes()) {
    for (const v1::Device& device : node.devices()) {
      if (!device.job_id().empty()) jobs[device.job_id()];
    }
  }
  for (auto& [id, state] : jobs) {
    v1::GetJobRequest request;
    request.set_job(id);
    request.set_project(project);
    const absl::StatusOr<v1::Job> job = connection.Call(
        connection.jobs(), &v1::JobService::Stub::GetJob, request, kAnswer);
    if (job.ok()) state = job->state();
  }
  return jobs;
}

std::string Ended(const std::string& daemon, const ProcessId& process,
                  bool was_alive, bool clean, absl::Duration grace) {
  if (!was_alive) return absl::StrCat(daemon, "  had ended already\n");
  return absl::StrCat(
      daemon, clean ? "  stopped" : "  killed", " (pid ", process.pid, ")",
      clean ? ""
            : absl::StrCat(": had not ended ", absl::FormatDuration(grace),
                           " after SIGTERM"),
      "\n");
}

// What becomes of a job that held devices.
std::string Later(const std::string& job, v1::JobState state,
                  const std::string& start) {
  if (state == v1::JOB_STATE_CANCELLING) {
    return absl::StrCat("job ", job,
                        " is being cancelled and does not go on\n");
  }
  return absl::StrCat("job ", job,
                      " goes on from its last checkpoint after: ", start, "\n");
}

}  // namespace

absl::Status LocalStop(Session& session, const std::string& data_dir_flag,
                       absl::Duration timeout) {
  ASSIGN_OR_RETURN(const std::string data_dir,
                   LocalDataDir(session, data_dir_flag));
  ASSIGN_OR_RETURN(const std::optional<LocalInstance> instance,
                   LoadInstance(data_dir));
  std::ostream& out = *session.output.out;
  if (!instance) {
    out << "nothing runs in " << data_dir << "\n";
    return absl::OkStatus();
  }
  const bool worker = IsAlive(instance->worker);
  const bool coordinator = IsAlive(instance->coordinator);
  const std::map<std::string, v1::JobState> jobs =
      RunningJobs(*instance, session.project);
  ASSIGN_OR_RETURN(const Stopped stopped,
                   StopInstance(data_dir, *instance, timeout));
  out << Ended("worker     ", instance->worker, worker, stopped.worker_clean,
               timeout)
      << Ended("coordinator", instance->coordinator, coordinator,
               stopped.coordinator_clean, timeout)
      << "state and logs stay in " << data_dir << "\n";
  for (const auto& [job, state] : jobs) {
    out << Later(job, state, StartCommand(session, data_dir, *instance));
  }
  return ForgetLocal(session, data_dir);
}

}  // namespace qlora::client
