// What the agent and its launcher say to each other: one JSON object a packet
// over a SOCK_SEQPACKET pair, descriptors beside it (SCM_RIGHTS).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace qlora::agent {

struct SpawnRequest {
  // Chosen by the caller, never used twice.
  uint64_t id = 0;
  // argv[0] is the program's path.
  std::vector<std::string> argv = {};
  // "KEY=VALUE": the whole environment.
  std::vector<std::string> environment = {};
  std::string directory = "";
  // Cores to bind to; empty: not bound.
  std::vector<int> cores = {};
  // Processes of one group share a cgroup.
  std::string group = "";
};

struct KillRequest {
  uint64_t id = 0;
  int signal = 0;
};

struct LauncherRequest {
  enum class Type { kSpawn, kKill } type = Type::kSpawn;
  SpawnRequest spawn;
  KillRequest kill;
};

struct LauncherReply {
  enum class Type { kSpawned, kFailed, kExited } type = Type::kSpawned;
  uint64_t id = 0;
  int pid = 0;
  // kFailed: why the program could not be started.
  std::string error = "";
  int exit_code = 0;
  // 0 unless killed by a signal.
  int signal = 0;
  // The kernel killed it for want of memory.
  bool out_of_memory = false;
};

std::string EncodeRequest(const LauncherRequest& request);
absl::StatusOr<LauncherRequest> DecodeRequest(const std::string& packet);
std::string EncodeReply(const LauncherReply& reply);
absl::StatusOr<LauncherReply> DecodeReply(const std::string& packet);

// Unavailable: the other side is gone.
absl::Status SendPacket(int socket, const std::string& packet,
                        const std::vector<int>& fds);

struct Packet {
  // Empty at the end of the stream.
  std::string bytes;
  std::vector<UniqueFd> fds;
};
// Blocks. Unavailable: the connection broke.
absl::StatusOr<Packet> ReceivePacket(int socket);

}  // namespace qlora::agent
