#include <set>

#include "absl/strings/str_cat.h"
#include "client/local/data_dir.h"
#include "client/local/instance.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

// Jobs that hold devices now; none too where nobody answers.
std::set<std::string> RunningJobs(const LocalInstance& instance) {
  std::set<std::string> jobs;
  if (!IsAlive(instance.coordinator)) return jobs;
  Connection connection(instance.endpoint);
  const absl::StatusOr<v1::ListNodesResponse> nodes =
      connection.Call(connection.nodes(), &v1::NodeService::Stub::ListNodes,
                      v1::ListNodesRequest(), absl::Seconds(2));
  if (!nodes.ok()) return jobs;
  for (const v1::Node& node : nodes->nodes()) {
    for (const v1::Device& device : node.devices()) {
      if (!device.job_id().empty()) jobs.insert(device.job_id());
    }
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

// With the flags that it was started with.
std::string StartCommand(const LocalInstance& instance) {
  std::string command = "qloractl local start";
  if (instance.cpu_ranks > 0) {
    absl::StrAppend(&command, " --cpu-ranks ", instance.cpu_ranks);
  }
  for (const std::string& root : instance.model_roots) {
    absl::StrAppend(&command, " --model-root ", root);
  }
  return command;
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
  const std::set<std::string> jobs = RunningJobs(*instance);
  ASSIGN_OR_RETURN(const Stopped stopped,
                   StopInstance(data_dir, *instance, timeout));
  out << Ended("worker     ", instance->worker, worker, stopped.worker_clean,
               timeout)
      << Ended("coordinator", instance->coordinator, coordinator,
               stopped.coordinator_clean, timeout)
      << "state and logs stay in " << data_dir << "\n";
  for (const std::string& job : jobs) {
    out << "job " << job << " goes on from its last checkpoint after: "
        << StartCommand(*instance) << "\n";
  }
  return ForgetLocal(session, data_dir);
}

}  // namespace qlora::client
