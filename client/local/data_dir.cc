#include "client/local/data_dir.h"

#include <filesystem>

namespace qlora::client {

absl::StatusOr<std::string> LocalDataDir(const Session& session,
                                         const std::string& flag) {
  if (!flag.empty()) {
    return std::filesystem::absolute(flag).lexically_normal().string();
  }
  const auto context = session.config.contexts.find("local");
  if (context != session.config.contexts.end()) {
    const std::string& noted = context->second.data_dir;
    std::error_code error;
    if (std::filesystem::exists(noted + "/local.json", error)) return noted;
  }
  return DefaultLocalDirectory();
}

}  // namespace qlora::client
