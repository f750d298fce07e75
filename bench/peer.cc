#include "bench/peer.h"

#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace qlora::bench {
namespace {

std::string Command(const Options& options, const std::string& program,
                    const std::string& arguments) {
  return absl::StrCat(options.peer_python, " ", options.peers, "/", program,
                      " ", arguments, " --threads ", options.threads);
}

// With one end of a socket as its standard input and output; 0 without.
pid_t Spawn(std::string command, int socket) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, socket, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, socket, STDOUT_FILENO);
  std::string shell = "sh", option = "-c";
  char* arguments[] = {shell.data(), option.data(), command.data(), nullptr};
  pid_t pid = 0;
  const int error =
      posix_spawnp(&pid, "sh", &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  return error == 0 ? pid : 0;
}

}  // namespace

absl::StatusOr<nlohmann::json> RunPeer(const Options& options,
                                       const std::string& program,
                                       const std::string& arguments) {
  const std::string command = Command(options, program, arguments);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return absl::InternalError("cannot start the peer");
  std::string output;
  char buffer[4096];
  while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) output = buffer;
  if (pclose(pipe) != 0) {
    return absl::InternalError(absl::StrCat("the peer failed: ", command));
  }
  auto json = nlohmann::json::parse(output, nullptr, false);
  if (json.is_discarded()) return absl::InternalError("no JSON: " + output);
  return json;
}

absl::StatusOr<std::unique_ptr<Peer>> Peer::Start(
    const Options& options, const std::string& program,
    const std::string& arguments) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return absl::InternalError("no socket for the peer");
  }
  const std::string command = Command(options, program, arguments);
  const pid_t pid = Spawn("exec " + command, ends[1]);
  close(ends[1]);
  FILE* stream = fdopen(ends[0], "r");
  if (pid == 0 || stream == nullptr) {
    return absl::InternalError("cannot start the peer: " + command);
  }
  return std::unique_ptr<Peer>(new Peer(pid, stream));
}

Peer::~Peer() {
  // The end of its input.
  std::fclose(stream_);
  waitpid(pid_, nullptr, 0);
}

absl::StatusOr<double> Peer::Seconds(const std::string& work) {
  const std::string line = work + "\n";
  char answer[256];
  if (send(fileno(stream_), line.data(), line.size(), MSG_NOSIGNAL) < 0 ||
      std::fgets(answer, sizeof(answer), stream_) == nullptr) {
    return absl::InternalError("the peer failed: " + work);
  }
  const auto text = absl::StripTrailingAsciiWhitespace(answer);
  double seconds = 0;
  if (!absl::SimpleAtod(text, &seconds)) return absl::UnavailableError(text);
  return seconds;
}

}  // namespace qlora::bench
