#include "client/local/data_dir.h"

#include <filesystem>

#include "common/base/status_macros.h"

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

absl::Status ForgetLocal(Session& session, const std::string& data_dir) {
  Config& config = session.config;
  if (!DropLocalContext(config, data_dir)) return absl::OkStatus();
  RETURN_IF_ERROR(SaveConfig(session.config_path, config));
  if (!config.current.empty()) {
    *session.output.out << "now talking to " << config.current << " at "
                        << config.contexts[config.current].endpoint << "\n";
  }
  return absl::OkStatus();
}

}  // namespace qlora::client
