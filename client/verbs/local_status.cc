#include "absl/strings/str_cat.h"
#include "client/local/data_dir.h"
#include "client/local/instance.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status LocalStatus(Session& session, const std::string& data_dir_flag) {
  ASSIGN_OR_RETURN(const std::string data_dir,
                   LocalDataDir(session, data_dir_flag));
  ASSIGN_OR_RETURN(const std::optional<LocalInstance> instance,
                   LoadInstance(data_dir));
  if (!instance || !instance->any_alive()) {
    return WithHint(
        absl::UnavailableError(absl::StrCat("nothing runs in ", data_dir)),
        "qloractl local start");
  }
  Table table({{"DAEMON"}, {"STATE"}, {"PID", true}, {"ADDRESS"}, {"METRICS"}});
  const auto add = [&](const std::string& name, const ProcessId& process,
                       const std::string& address, const std::string& metrics) {
    table.AddRow({name, IsAlive(process) ? "running" : "ended",
                  absl::StrCat(process.pid), address, metrics});
  };
  add("coordinator", instance->coordinator, instance->endpoint,
      instance->metrics);
  add("worker", instance->worker, "-", instance->worker_metrics);
  *session.output.out << table.Format(session.output.terminal.color)
                      << "state and logs in " << data_dir << "\n";
  if (instance->both_alive()) return absl::OkStatus();
  return WithHint(absl::UnavailableError("one of the daemons has ended"),
                  "qloractl local start");
}

}  // namespace qlora::client
