#include "worker/agent/launcher_wire.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"

namespace qlora::agent {
namespace {

using nlohmann::json;

constexpr size_t kMaxPacket = 128 << 10;
constexpr size_t kMaxFds = 8;

std::string Dump(const json& object) {
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::Status Malformed(const std::string& packet) {
  return absl::InternalError(
      absl::StrCat("malformed launcher message: ", packet.substr(0, 100)));
}

}  // namespace

std::string EncodeRequest(const LauncherRequest& request) {
  if (request.type == LauncherRequest::Type::kKill) {
    return Dump({{"op", "kill"},
                 {"id", request.kill.id},
                 {"signal", request.kill.signal}});
  }
  const SpawnRequest& spawn = request.spawn;
  return Dump({{"op", "spawn"},
               {"id", spawn.id},
               {"argv", spawn.argv},
               {"environment", spawn.environment},
               {"cores", spawn.cores},
               {"directory", spawn.directory},
               {"group", spawn.group}});
}

absl::StatusOr<LauncherRequest> DecodeRequest(const std::string& packet) {
  const json object = json::parse(packet, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return Malformed(packet);
  LauncherRequest request;
  if (object.value("op", "") == "kill") {
    request.type = LauncherRequest::Type::kKill;
    request.kill.id = object.value("id", uint64_t{0});
    request.kill.signal = object.value("signal", 0);
    return request;
  }
  SpawnRequest& spawn = request.spawn;
  spawn.id = object.value("id", uint64_t{0});
  spawn.argv = object.value("argv", std::vector<std::string>());
  spawn.environment = object.value("environment", std::vector<std::string>());
  spawn.directory = object.value("directory", std::string());
  spawn.cores = object.value("cores", std::vector<int>());
  spawn.group = object.value("group", std::string());
  if (spawn.argv.empty()) return Malformed(packet);
  return request;
}

std::string EncodeReply(const LauncherReply& reply) {
  return Dump({{"type", static_cast<int>(reply.type)},
               {"id", reply.id},
               {"pid", reply.pid},
               {"error", reply.error},
               {"exit_code", reply.exit_code},
               {"signal", reply.signal},
               {"out_of_memory", reply.out_of_memory}});
}

absl::StatusOr<LauncherReply> DecodeReply(const std::string& packet) {
  const json object = json::parse(packet, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return Malformed(packet);
  return LauncherReply{
      .type = static_cast<LauncherReply::Type>(object.value("type", 0)),
      .id = object.value("id", uint64_t{0}),
      .pid = object.value("pid", 0),
      .error = object.value("error", std::string()),
      .exit_code = object.value("exit_code", 0),
      .signal = object.value("signal", 0),
      .out_of_memory = object.value("out_of_memory", false)};
}

absl::Status SendPacket(int socket, const std::string& packet,
                        const std::vector<int>& fds) {
  iovec data = {.iov_base = const_cast<char*>(packet.data()),
                .iov_len = packet.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  while (::sendmsg(socket, &message, MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    return absl::UnavailableError(
        absl::StrCat("launcher socket: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

absl::StatusOr<Packet> ReceivePacket(int socket) {
  Packet packet;
  packet.bytes.resize(kMaxPacket);
  iovec data = {.iov_base = packet.bytes.data(), .iov_len = kMaxPacket};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t n;
  do {
    n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) {
    return absl::UnavailableError(
        absl::StrCat("launcher socket: ", std::strerror(errno)));
  }
  packet.bytes.resize(static_cast<size_t>(n));
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    std::vector<int> fds(count);
    std::memcpy(fds.data(), CMSG_DATA(header), count * sizeof(int));
    for (const int fd : fds) packet.fds.emplace_back(fd);
  }
  return packet;
}

}  // namespace qlora::agent
