#include "client/config.h"

#include <yaml-cpp/yaml.h>

#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "client/errors.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

// The directory that the XDG variable names, or the default below HOME.
absl::StatusOr<std::string> XdgDirectory(const char* variable,
                                         const std::string& below_home) {
  const char* xdg = std::getenv(variable);
  // The XDG specification: relative values are to be ignored.
  if (xdg != nullptr && xdg[0] == '/') return std::string(xdg);
  const char* home = std::getenv("HOME");
  if (home == nullptr || home[0] == '\0') {
    return absl::FailedPreconditionError(
        absl::StrCat("neither ", variable, " nor HOME is set"));
  }
  return absl::StrCat(home, "/", below_home);
}

absl::Status ErrorAt(const std::string& source_name, const YAML::Mark& mark,
                     const std::string& message) {
  return WithWhat(absl::InvalidArgumentError(
                      absl::StrCat(source_name, ":", mark.line + 1, ":",
                                   mark.column + 1, ": ", message)),
                  "the client's configuration is not valid");
}

absl::StatusOr<Context> ParseContext(const YAML::Node& node,
                                     const std::string& name,
                                     const std::string& source_name) {
  if (!node.IsMap()) {
    return ErrorAt(source_name, node.Mark(),
                   absl::StrCat("context ", name, " is no mapping"));
  }
  Context context;
  for (const auto& entry : node) {
    const std::string key = entry.first.as<std::string>();
    if (key == "endpoint") {
      context.endpoint = entry.second.as<std::string>();
    } else if (key == "data_dir") {
      context.data_dir = entry.second.as<std::string>();
    } else {
      return ErrorAt(
          source_name, entry.first.Mark(),
          absl::StrCat("unknown key ", key, "; known: endpoint, data_dir"));
    }
  }
  if (context.endpoint.empty()) {
    return ErrorAt(source_name, node.Mark(),
                   absl::StrCat("context ", name, " has no endpoint"));
  }
  return context;
}

absl::StatusOr<Config> ParseRoot(const YAML::Node& root,
                                 const std::string& source_name) {
  Config config;
  if (root.IsNull()) return config;
  if (!root.IsMap()) return ErrorAt(source_name, root.Mark(), "no mapping");
  for (const auto& entry : root) {
    const std::string key = entry.first.as<std::string>();
    if (key == "current") {
      config.current = entry.second.as<std::string>();
    } else if (key == "contexts") {
      for (const auto& context : entry.second) {
        const std::string name = context.first.as<std::string>();
        ASSIGN_OR_RETURN(config.contexts[name],
                         ParseContext(context.second, name, source_name));
      }
    } else {
      return ErrorAt(
          source_name, entry.first.Mark(),
          absl::StrCat("unknown key ", key, "; known: current, contexts"));
    }
  }
  return config;
}

absl::Status NoSuchContext(const std::string& name) {
  return WithHint(absl::NotFoundError(absl::StrCat("no context ", name)),
                  "qloractl context list");
}

}  // namespace

absl::StatusOr<std::string> ConfigPath() {
  ASSIGN_OR_RETURN(const std::string directory,
                   XdgDirectory("XDG_CONFIG_HOME", ".config"));
  return absl::StrCat(directory, "/qlora/config.yaml");
}

absl::StatusOr<std::string> DefaultLocalDirectory() {
  ASSIGN_OR_RETURN(const std::string directory,
                   XdgDirectory("XDG_STATE_HOME", ".local/state"));
  return absl::StrCat(directory, "/qlora/local");
}

absl::StatusOr<Config> ParseConfig(const std::string& yaml,
                                   const std::string& source_name) {
  try {
    return ParseRoot(YAML::Load(yaml), source_name);
  } catch (const YAML::Exception& e) {
    return ErrorAt(source_name, e.mark, e.msg);
  }
}

absl::StatusOr<Config> LoadConfig(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (absl::IsNotFound(text.status())) return Config{};
  RETURN_IF_ERROR(text.status());
  return ParseConfig(*text, path);
}

std::string FormatConfig(const Config& config) {
  YAML::Emitter out;
  out << YAML::BeginMap;
  if (!config.current.empty()) {
    out << YAML::Key << "current" << YAML::Value << config.current;
  }
  out << YAML::Key << "contexts" << YAML::Value << YAML::BeginMap;
  for (const auto& [name, context] : config.contexts) {
    out << YAML::Key << name << YAML::Value << YAML::BeginMap;
    out << YAML::Key << "endpoint" << YAML::Value << YAML::DoubleQuoted
        << context.endpoint;
    if (!context.data_dir.empty()) {
      out << YAML::Key << "data_dir" << YAML::Value << YAML::DoubleQuoted
          << context.data_dir;
    }
    out << YAML::EndMap;
  }
  out << YAML::EndMap << YAML::EndMap;
  return absl::StrCat(out.c_str(), "\n");
}

absl::Status SaveConfig(const std::string& path, const Config& config) {
  RETURN_IF_ERROR(
      CreateDirectories(std::filesystem::path(path).parent_path().string()));
  return WriteFileAtomically(path, FormatConfig(config));
}

absl::StatusOr<std::string> ResolveEndpoint(const EndpointChoice& choice,
                                            const Config& config) {
  if (!choice.endpoint_flag.empty()) return choice.endpoint_flag;
  std::string name = choice.context_flag;
  if (name.empty()) {
    if (!choice.environment.empty()) return choice.environment;
    name = config.current;
  }
  if (name.empty()) return std::string(kDefaultEndpoint);
  const auto it = config.contexts.find(name);
  if (it == config.contexts.end()) return NoSuchContext(name);
  return it->second.endpoint;
}

}  // namespace qlora::client
