// What an agent remembers between starts, in <data-dir>/node.state: the cluster
// it belongs to, the newest term, the newest command. Thread-safe.
//
// The file has a fixed size and is written in place, so that the agent can
// register and obey on a full disk:
//
//   file = slot[2]
//   slot = crc " " json "\n"...    4096 bytes
//
// crc is the CRC-32C of json, 8 hex digits. The whole slot with the greater
// `sequence` counts; the other one is written next, so that a torn write costs
// what it would have said and no more.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"

namespace qlora::agent {

struct NodeMemory {
  // Empty before the first Welcome.
  std::string cluster_id;
  int64_t term = 0;
  uint64_t last_command = 0;
};

class NodeState {
 public:
  // Creates the file if there is none. DataLoss naming the file if it is not
  // readable as what this wrote; else as common/base/files.h.
  static absl::StatusOr<std::unique_ptr<NodeState>> Open(std::string path);

  NodeMemory Get() const;
  // Durable on return. FailedPrecondition: another cluster's id, or a term
  // older than the newest seen; says what to do.
  absl::Status Welcome(const std::string& cluster_id, int64_t term);
  // Durable on return.
  absl::Status CommandSeen(uint64_t number);

 private:
  explicit NodeState(std::string path) : path_(std::move(path)) {}
  absl::Status Load();
  absl::Status CreateLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status StoreLocked(NodeMemory memory)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string path_;
  mutable Mutex mu_;
  // None after a failed write: the next one makes the file anew.
  UniqueFd fd_ ABSL_GUARDED_BY(mu_);
  NodeMemory memory_ ABSL_GUARDED_BY(mu_);
  uint64_t sequence_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace qlora::agent
