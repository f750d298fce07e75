#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/local/data_dir.h"
#include "client/local/instance.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

absl::Status Print(const Output& output, const LocalInstance& instance,
                   const std::string& data_dir) {
  Table table({{"DAEMON"}, {"STATE"}, {"PID", true}, {"ADDRESS"}, {"METRICS"}});
  nlohmann::ordered_json document = {{"dataDir", data_dir}};
  const auto add = [&](const std::string& name, const ProcessId& process,
                       const std::string& address, const std::string& metrics) {
    const std::string state = IsAlive(process) ? "running" : "ended";
    table.AddRow({name, state, absl::StrCat(process.pid),
                  address.empty() ? "-" : address, metrics});
    document[name] = {{"state", state}, {"pid", process.pid}};
    if (!address.empty()) document[name]["endpoint"] = address;
    document[name]["metrics"] = metrics;
  };
  add("coordinator", instance.coordinator, instance.endpoint, instance.metrics);
  add("worker", instance.worker, "", instance.worker_metrics);
  if (IsForPrograms(output.format)) return PrintJson(output, document.dump());
  *output.out << table.Format(output.terminal.color) << "state and logs in "
              << data_dir << "\n";
  return absl::OkStatus();
}

}  // namespace

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
  RETURN_IF_ERROR(Print(session.output, *instance, data_dir));
  if (instance->both_alive()) return absl::OkStatus();
  return WithHint(absl::UnavailableError("one of the daemons has ended"),
                  "qloractl local start");
}

}  // namespace qlora::client
