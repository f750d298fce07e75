// What an agent remembers between starts, in <data-dir>/node.json: the cluster
// it belongs to, the newest term, the newest command. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/mutex.h"

namespace qlora::agent {

struct NodeMemory {
  // Empty before the first Welcome.
  std::string cluster_id;
  int64_t term = 0;
  uint64_t last_command = 0;
};

class NodeState {
 public:
  // DataLoss naming the file if it is not readable as what this wrote.
  static absl::StatusOr<std::unique_ptr<NodeState>> Open(std::string path);

  NodeMemory Get() const;
  // Durable on return. FailedPrecondition: another cluster's id, or a term
  // older than the newest seen; says what to do.
  absl::Status Welcome(const std::string& cluster_id, int64_t term);
  // Durable on return.
  absl::Status CommandSeen(uint64_t number);

 private:
  NodeState(std::string path, NodeMemory memory)
      : path_(std::move(path)), memory_(std::move(memory)) {}
  absl::Status StoreLocked(NodeMemory memory)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string path_;
  mutable Mutex mu_;
  NodeMemory memory_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::agent
