#include "client/config.h"

#include <yaml-cpp/emitter.h>

#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/errors.h"
#include "client/names.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/formats/yaml_tree.h"

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

absl::Status ErrorAt(const std::string& source_name, int line, int column,
                     const std::string& message) {
  return WithWhat(absl::InvalidArgumentError(absl::StrCat(
                      source_name, ":", line, ":", column, ": ", message)),
                  "the client's configuration is not valid");
}

absl::Status SetText(const YamlNode::Entry& entry,
                     const std::string& source_name, std::string* text) {
  if (!entry.value.is_scalar()) {
    return ErrorAt(source_name, entry.line, entry.column,
                   absl::StrCat(entry.key, " is no text"));
  }
  *text = entry.value.text;
  return absl::OkStatus();
}

absl::Status UnknownKey(const YamlNode::Entry& entry,
                        const std::string& source_name,
                        const std::string& known) {
  return ErrorAt(source_name, entry.line, entry.column,
                 absl::StrCat("unknown key ", entry.key, "; known: ", known));
}

absl::StatusOr<Context> ParseContext(const YamlNode& node,
                                     const std::string& name,
                                     const std::string& source_name) {
  if (!node.is_map()) {
    return ErrorAt(source_name, node.line, node.column,
                   absl::StrCat("context ", name, " is no mapping"));
  }
  Context context;
  for (const YamlNode::Entry& entry : node.entries) {
    if (entry.key == "endpoint") {
      RETURN_IF_ERROR(SetText(entry, source_name, &context.endpoint));
    } else if (entry.key == "data_dir") {
      RETURN_IF_ERROR(SetText(entry, source_name, &context.data_dir));
    } else if (entry.key == "previous") {
      RETURN_IF_ERROR(SetText(entry, source_name, &context.previous));
    } else {
      return UnknownKey(entry, source_name, "endpoint, data_dir, previous");
    }
  }
  if (context.endpoint.empty()) {
    return ErrorAt(source_name, node.line, node.column,
                   absl::StrCat("context ", name, " has no endpoint"));
  }
  return context;
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
  const YamlDocument document = ParseYaml(yaml);
  if (!document.errors.empty()) {
    const YamlError& error = document.errors[0];
    return ErrorAt(source_name, error.line, error.column, error.message);
  }
  const YamlNode& root = document.root;
  Config config;
  if (root.is_null()) return config;
  if (!root.is_map()) {
    return ErrorAt(source_name, root.line, root.column, "no mapping");
  }
  for (const YamlNode::Entry& entry : root.entries) {
    if (entry.key == "current") {
      RETURN_IF_ERROR(SetText(entry, source_name, &config.current));
    } else if (entry.key == "contexts") {
      for (const YamlNode::Entry& context : entry.value.entries) {
        ASSIGN_OR_RETURN(config.contexts[context.key],
                         ParseContext(context.value, context.key, source_name));
      }
    } else {
      return UnknownKey(entry, source_name, "current, contexts");
    }
  }
  return config;
}

absl::StatusOr<Config> LoadConfig() {
  const absl::StatusOr<std::string> path = ConfigPath();
  if (!path.ok()) return Config{};
  const absl::StatusOr<std::string> text = ReadFile(*path);
  if (absl::IsNotFound(text.status())) return Config{};
  RETURN_IF_ERROR(text.status());
  return ParseConfig(*text, *path);
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
    if (!context.previous.empty()) {
      out << YAML::Key << "previous" << YAML::Value << context.previous;
    }
    out << YAML::EndMap;
  }
  out << YAML::EndMap << YAML::EndMap;
  return absl::StrCat(out.c_str(), "\n");
}

absl::Status SaveConfig(const Config& config) {
  ASSIGN_OR_RETURN(const std::string path, ConfigPath());
  RETURN_IF_ERROR(
      CreateDirectories(std::filesystem::path(path).parent_path().string()));
  return WriteFileAtomically(path, FormatConfig(config));
}

absl::StatusOr<std::string> ParseEndpoint(const std::string& text,
                                          const std::string& where) {
  const auto refuse = [&](const std::string& why) {
    return UsageError(absl::StrCat(where, " ", text, ": ", why));
  };
  if (absl::StartsWith(text, "https://")) {
    return refuse("there is no TLS yet; give HOST:PORT of a tunnel's near end");
  }
  absl::string_view address = absl::StripPrefix(text, "http://");
  address = absl::StripSuffix(address, "/");
  const size_t colon = address.rfind(':');
  const absl::string_view host = address.substr(0, colon);
  int port = 0;
  // An IPv6 address stands in brackets.
  const bool bare_v6 =
      absl::StrContains(host, ":") && !absl::EndsWith(host, "]");
  if (colon == absl::string_view::npos || host.empty() || bare_v6 ||
      absl::StrContains(address, "/") ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 1 ||
      port > 65535) {
    return refuse("must be HOST:PORT, for instance 127.0.0.1:7070");
  }
  return std::string(address);
}

absl::Status NoSuchContext(const std::string& name) {
  return WithHint(absl::NotFoundError(absl::StrCat("no context ", name)),
                  "qloractl context list");
}

absl::StatusOr<std::string> ResolveEndpoint(const EndpointChoice& choice,
                                            const Config& config) {
  if (!choice.endpoint_flag.empty()) {
    return ParseEndpoint(choice.endpoint_flag, "--endpoint");
  }
  std::string name = choice.context_flag;
  if (name.empty()) {
    if (!choice.environment.empty()) {
      return ParseEndpoint(choice.environment, "QLORA_ENDPOINT");
    }
    name = config.current;
  }
  if (name.empty()) return std::string(kDefaultEndpoint);
  const auto it = config.contexts.find(name);
  if (it == config.contexts.end()) return NoSuchContext(name);
  return ParseEndpoint(it->second.endpoint,
                       absl::StrCat("context ", name, ": endpoint"));
}

std::string FindLocalContext(const Config& config,
                             const std::string& data_dir) {
  for (const auto& [name, context] : config.contexts) {
    if (context.data_dir == data_dir) return name;
  }
  return "";
}

std::string UseLocalContext(Config& config, const std::string& endpoint,
                            const std::string& data_dir) {
  std::string name = FindLocalContext(config, data_dir);
  if (name.empty()) {
    const std::string directory =
        RegistryName(std::filesystem::path(data_dir).filename().string());
    const std::string other =
        absl::StrCat(kLocalContext, directory.empty() ? "" : "-", directory);
    name = kLocalContext;
    for (int i = 1; config.contexts.contains(name); ++i) {
      name = i == 1 ? other : absl::StrCat(other, "-", i);
    }
  }
  Context& context = config.contexts[name];
  context.endpoint = endpoint;
  context.data_dir = data_dir;
  if (config.current != name) {
    context.previous = std::exchange(config.current, name);
  }
  return name;
}

std::string DropLocalContext(Config& config, const std::string& data_dir) {
  const std::string name = FindLocalContext(config, data_dir);
  if (name.empty()) return "";
  const std::string previous = config.contexts[name].previous;
  config.contexts.erase(name);
  // What was to come back to it goes one further.
  for (auto& [other, context] : config.contexts) {
    if (context.previous == name) context.previous = previous;
  }
  if (config.current == name) {
    config.current = config.contexts.contains(previous) ? previous : "";
  }
  return name;
}

}  // namespace qlora::client
