#include "bench/peer.h"

#include <cstdio>

#include "absl/strings/str_cat.h"

namespace qlora::bench {

absl::StatusOr<nlohmann::json> RunPeer(const Options& options,
                                       const std::string& program,
                                       const std::string& arguments) {
  const std::string command =
      absl::StrCat(options.peer_python, " ", options.peers, "/", program, " ",
                   arguments, " --threads ", options.threads);
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

}  // namespace qlora::bench
