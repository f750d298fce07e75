#include "worker/agent/node_state.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora::agent {

absl::StatusOr<std::unique_ptr<NodeState>> NodeState::Open(std::string path) {
  NodeMemory memory;
  const auto content = ReadFile(path);
  if (!content.ok() && !absl::IsNotFound(content.status())) {
    return content.status();
  }
  if (content.ok()) {
    const auto object =
        nlohmann::json::parse(*content, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object() || !object.contains("cluster_id") ||
        !object["cluster_id"].is_string()) {
      return absl::DataLossError(
          absl::StrCat(path,
                       " is damaged; move the data directory away and "
                       "start the worker with an empty one"));
    }
    memory.cluster_id = object["cluster_id"];
    memory.term = object.value("term", int64_t{0});
    memory.last_command = object.value("last_command", uint64_t{0});
  }
  return std::unique_ptr<NodeState>(
      new NodeState(std::move(path), std::move(memory)));
}

NodeMemory NodeState::Get() const {
  MutexLock lock(&mu_);
  return memory_;
}

absl::Status NodeState::Welcome(const std::string& cluster_id, int64_t term) {
  MutexLock lock(&mu_);
  if (!memory_.cluster_id.empty() && memory_.cluster_id != cluster_id) {
    return absl::FailedPreconditionError(
        absl::StrCat("this node belongs to cluster ", memory_.cluster_id,
                     ", the coordinator to ", cluster_id,
                     "; start the worker with an empty --data-dir to join it"));
  }
  if (term < memory_.term) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the coordinator's term ", term, " is older than ", memory_.term,
        ", which this node has seen: another coordinator took the lead"));
  }
  NodeMemory next = memory_;
  next.cluster_id = cluster_id;
  next.term = term;
  return StoreLocked(std::move(next));
}

absl::Status NodeState::CommandSeen(uint64_t number) {
  MutexLock lock(&mu_);
  NodeMemory next = memory_;
  next.last_command = number;
  return StoreLocked(std::move(next));
}

absl::Status NodeState::StoreLocked(NodeMemory memory) {
  const nlohmann::json object = {{"cluster_id", memory.cluster_id},
                                 {"term", memory.term},
                                 {"last_command", memory.last_command}};
  RETURN_IF_ERROR(WriteFileAtomically(path_, object.dump() + "\n"));
  memory_ = std::move(memory);
  return absl::OkStatus();
}

}  // namespace qlora::agent
