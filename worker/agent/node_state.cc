#include "worker/agent/node_state.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/crc32c.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora::agent {
namespace {

constexpr size_t kSlotBytes = 4096;
constexpr size_t kCrcDigits = 8;
// Leaves a slot room for the rest.
constexpr size_t kMaxClusterId = 1024;

std::string Crc(std::string_view json) {
  return absl::StrCat(absl::Hex(Crc32c(json), absl::kZeroPad8));
}

std::string EncodeSlot(const NodeMemory& memory, uint64_t sequence) {
  const std::string json = nlohmann::json{
      {"cluster_id", memory.cluster_id},
      {"term", memory.term},
      {"last_command", memory.last_command},
      {"sequence", sequence}}.dump();
  std::string slot = absl::StrCat(Crc(json), " ", json);
  slot.resize(kSlotBytes, '\n');
  return slot;
}

struct Slot {
  NodeMemory memory;
  uint64_t sequence = 0;
};

std::optional<Slot> DecodeSlot(std::string_view bytes) {
  const std::string_view line = bytes.substr(0, bytes.find('\n'));
  if (line.size() <= kCrcDigits + 1) return std::nullopt;
  const std::string_view json = line.substr(kCrcDigits + 1);
  if (line.substr(0, kCrcDigits) != Crc(json)) return std::nullopt;
  const auto object =
      nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return std::nullopt;
  return Slot{
      .memory = {.cluster_id = object.value("cluster_id", ""),
                 .term = object.value("term", int64_t{0}),
                 .last_command = object.value("last_command", uint64_t{0})},
      .sequence = object.value("sequence", uint64_t{0})};
}

}  // namespace

absl::StatusOr<std::unique_ptr<NodeState>> NodeState::Open(std::string path) {
  std::unique_ptr<NodeState> state(new NodeState(std::move(path)));
  RETURN_IF_ERROR(state->Load());
  return state;
}

absl::Status NodeState::Load() {
  MutexLock lock(&mu_);
  const auto content = ReadFile(path_, 2 * kSlotBytes);
  if (absl::IsNotFound(content.status())) return CreateLocked();
  RETURN_IF_ERROR(content.status());
  std::optional<Slot> newest;
  for (size_t at = 0; at < content->size(); at += kSlotBytes) {
    std::optional<Slot> slot =
        DecodeSlot(std::string_view(*content).substr(at, kSlotBytes));
    if (slot.has_value() &&
        (!newest.has_value() || slot->sequence > newest->sequence)) {
      newest = std::move(slot);
    }
  }
  if (!newest.has_value()) {
    return absl::DataLossError(
        absl::StrCat(path_,
                     " is damaged; move the data directory away and "
                     "start the worker with an empty one"));
  }
  memory_ = std::move(newest->memory);
  sequence_ = newest->sequence;
  fd_.Reset(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  return fd_.valid() ? absl::OkStatus() : ErrnoToStatus(errno, path_);
}

absl::Status NodeState::CreateLocked() {
  const std::string slot = EncodeSlot(memory_, sequence_);
  RETURN_IF_ERROR(WriteFileAtomically(path_, slot + slot));
  fd_.Reset(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  return fd_.valid() ? absl::OkStatus() : ErrnoToStatus(errno, path_);
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
  if (cluster_id.size() > kMaxClusterId) {
    return absl::FailedPreconditionError(
        absl::StrCat("the coordinator names a cluster of ", cluster_id.size(),
                     " characters; at most ", kMaxClusterId));
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
  if (!fd_.valid()) RETURN_IF_ERROR(CreateLocked());
  const std::string slot = EncodeSlot(memory, sequence_ + 1);
  const auto at = static_cast<off_t>((sequence_ + 1) % 2 * kSlotBytes);
  errno = EIO;
  if (::pwrite(fd_.get(), slot.data(), slot.size(), at) !=
          static_cast<ssize_t>(slot.size()) ||
      ::fdatasync(fd_.get()) != 0) {
    const absl::Status status = ErrnoToStatus(errno, path_);
    fd_.Reset();
    return status;
  }
  ++sequence_;
  memory_ = std::move(memory);
  return absl::OkStatus();
}

}  // namespace qlora::agent
