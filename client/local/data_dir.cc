#include "client/local/data_dir.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

bool HasInstance(const std::string& data_dir) {
  if (data_dir.empty()) return false;
  const absl::StatusOr<std::optional<LocalInstance>> instance =
      LoadInstance(data_dir);
  return !instance.ok() || instance->has_value();
}

// Empty for the default directory while that is the only one.
std::string DataDirFlag(const Session& session, const std::string& data_dir) {
  bool others = false;
  for (const auto& [name, context] : session.config.contexts) {
    others |= !context.data_dir.empty() && context.data_dir != data_dir;
  }
  const absl::StatusOr<std::string> usual = DefaultLocalDirectory();
  if (!others && usual.ok() && *usual == data_dir) return "";
  return absl::StrCat(" --data-dir ", ShellWord(data_dir));
}

}  // namespace

absl::StatusOr<std::string> LocalDataDir(const Session& session,
                                         const std::string& flag) {
  if (!flag.empty()) {
    const std::string path =
        std::filesystem::absolute(flag).lexically_normal().string();
    return path.size() > 1 && path.back() == '/'
               ? path.substr(0, path.size() - 1)
               : path;
  }
  std::vector<std::string> noted;
  for (const auto& [name, context] : session.config.contexts) {
    if (!HasInstance(context.data_dir)) continue;
    if (name == session.context) return context.data_dir;
    noted.push_back(context.data_dir);
  }
  if (noted.empty()) return DefaultLocalDirectory();
  if (noted.size() == 1) return noted[0];
  return WithHint(WithWhat(absl::FailedPreconditionError(absl::StrCat(
                               "give --data-dir or --context: there are ",
                               absl::StrJoin(noted, ", "))),
                           "several local instances are running"),
                  "qloractl context list -o wide");
}

absl::Status UseLocal(Session& session, const std::string& endpoint,
                      const std::string& data_dir) {
  Config& config = session.config;
  // The name `local` is for what is there.
  for (auto it = config.contexts.begin(); it != config.contexts.end();) {
    const std::string other = (it++)->second.data_dir;
    if (!other.empty() && !HasInstance(other)) DropLocalContext(config, other);
  }
  const std::string before = config.current;
  const std::string name = UseLocalContext(config, endpoint, data_dir);
  RETURN_IF_ERROR(SaveConfig(config));
  *session.output.out << "now talking to " << name << " at " << endpoint;
  if (!before.empty() && before != name) {
    *session.output.out << " (before: " << before << ")";
  }
  *session.output.out << "\n";
  return absl::OkStatus();
}

absl::Status ForgetLocal(Session& session, const std::string& data_dir) {
  Config& config = session.config;
  const std::string before = config.current;
  if (DropLocalContext(config, data_dir).empty()) return absl::OkStatus();
  RETURN_IF_ERROR(SaveConfig(config));
  if (config.current != before && !config.current.empty()) {
    *session.output.out << "now talking to " << config.current << " at "
                        << config.contexts[config.current].endpoint << "\n";
  }
  return absl::OkStatus();
}

std::string StopCommand(const Session& session, const std::string& data_dir) {
  return absl::StrCat("qloractl local stop", DataDirFlag(session, data_dir));
}

std::string StartCommand(const Session& session, const std::string& data_dir,
                         const LocalInstance& instance) {
  std::string command =
      absl::StrCat("qloractl local start", DataDirFlag(session, data_dir));
  if (instance.cpu_ranks > 0) {
    absl::StrAppend(&command, " --cpu-ranks ", instance.cpu_ranks);
  }
  for (const std::string& root : instance.model_roots) {
    absl::StrAppend(&command, " --model-root ", ShellWord(root));
  }
  return command;
}

std::string RestartCommand(const Session& session, const std::string& root) {
  for (const auto& [name, context] : session.config.contexts) {
    if (context.data_dir.empty()) continue;
    absl::StatusOr<std::optional<LocalInstance>> instance =
        LoadInstance(context.data_dir);
    if (!instance.ok() || !*instance) continue;
    if ((*instance)->endpoint != session.endpoint) continue;
    (*instance)->model_roots.push_back(root);
    return absl::StrCat(StopCommand(session, context.data_dir), "; ",
                        StartCommand(session, context.data_dir, **instance));
  }
  return "";
}

std::vector<std::string> OrphanedEndpoints(const Session& session,
                                           const std::string& data_dir) {
  std::vector<std::string> orphaned;
  for (const auto& [name, context] : session.config.contexts) {
    if (context.data_dir.empty() || context.data_dir == data_dir) continue;
    const absl::StatusOr<std::optional<LocalInstance>> other =
        LoadInstance(context.data_dir);
    if (other.ok() && *other && IsAlive((*other)->worker) &&
        !IsAlive((*other)->coordinator)) {
      orphaned.insert(orphaned.end(), {(*other)->endpoint, (*other)->metrics});
    }
  }
  return orphaned;
}

}  // namespace qlora::client
