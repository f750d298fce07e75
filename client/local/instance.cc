#include "client/local/instance.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/errors.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

using Json = nlohmann::ordered_json;

std::string InstancePath(const std::string& data_dir) {
  return absl::StrCat(data_dir, "/local.json");
}

Json ToJson(const ProcessId& process) {
  return {{"pid", process.pid}, {"start_time", process.start_time}};
}

ProcessId ProcessFromJson(const Json& json) {
  return {json.at("pid").get<pid_t>(), json.at("start_time").get<uint64_t>()};
}

}  // namespace

absl::StatusOr<std::optional<LocalInstance>> LoadInstance(
    const std::string& data_dir) {
  const std::string path = InstancePath(data_dir);
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  RETURN_IF_ERROR(text.status());
  try {
    const Json json = Json::parse(*text);
    LocalInstance instance;
    instance.coordinator = ProcessFromJson(json.at("coordinator"));
    instance.worker = ProcessFromJson(json.at("worker"));
    json.at("endpoint").get_to(instance.endpoint);
    json.at("metrics").get_to(instance.metrics);
    json.at("worker_metrics").get_to(instance.worker_metrics);
    json.at("cpu_ranks").get_to(instance.cpu_ranks);
    json.at("model_roots").get_to(instance.model_roots);
    return instance;
  } catch (const Json::exception& e) {
    return WithWhat(absl::DataLossError(e.what()),
                    absl::StrCat(path, " is damaged"));
  }
}

absl::Status SaveInstance(const std::string& data_dir,
                          const LocalInstance& instance) {
  const Json json = {{"coordinator", ToJson(instance.coordinator)},
                     {"worker", ToJson(instance.worker)},
                     {"endpoint", instance.endpoint},
                     {"metrics", instance.metrics},
                     {"worker_metrics", instance.worker_metrics},
                     {"cpu_ranks", instance.cpu_ranks},
                     {"model_roots", instance.model_roots}};
  return WriteFileAtomically(InstancePath(data_dir), json.dump(2) + "\n");
}

absl::StatusOr<Stopped> StopInstance(const std::string& data_dir,
                                     const LocalInstance& instance,
                                     absl::Duration grace) {
  Stopped stopped;
  stopped.worker_clean = StopProcess(instance.worker, grace);
  stopped.coordinator_clean = StopProcess(instance.coordinator, grace);
  RETURN_IF_ERROR(RemoveRecursively(InstancePath(data_dir)));
  return stopped;
}

std::string CoordinatorLog(const std::string& data_dir) {
  return absl::StrCat(data_dir, "/coordinator.log");
}

std::string WorkerLog(const std::string& data_dir) {
  return absl::StrCat(data_dir, "/worker.log");
}

}  // namespace qlora::client
