#include "common/daemon/yaml_config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "common/base/edit_distance.h"

namespace qlora {
namespace {

[[noreturn]] void Fail(const YAML::Mark& mark, const std::string& message) {
  throw CLI::ConfigError("line " + std::to_string(mark.line + 1) + ", column " +
                             std::to_string(mark.column + 1) + ": " + message,
                         CLI::ExitCodes::ConfigError);
}

}  // namespace

std::vector<CLI::ConfigItem> YamlConfig::from_config(
    std::istream& input) const {
  std::vector<CLI::ConfigItem> items;
  YAML::Node root;
  try {
    root = YAML::Load(input);
  } catch (const YAML::Exception& error) {
    Fail(error.mark, error.msg);
  }
  if (root.IsNull()) return items;
  if (!root.IsMap()) Fail(root.Mark(), "expected a map of flags to values");
  for (const auto& entry : root) {
    CLI::ConfigItem item;
    item.name = entry.first.as<std::string>("");
    if (std::find(keys_.begin(), keys_.end(), item.name) == keys_.end()) {
      const auto nearest = std::min_element(
          keys_.begin(), keys_.end(), [&](const auto& a, const auto& b) {
            return EditDistance(a, item.name) < EditDistance(b, item.name);
          });
      const bool close =
          nearest != keys_.end() && EditDistance(*nearest, item.name) <= 3;
      Fail(entry.first.Mark(),
           "unknown key \"" + item.name + "\"" +
               (close ? "; did you mean \"" + *nearest + "\"?" : ""));
    }
    if (entry.second.IsScalar()) {
      item.inputs = {entry.second.Scalar()};
    } else if (entry.second.IsSequence()) {
      item.inputs =
          entry.second.as<std::vector<std::string>>(std::vector<std::string>());
    } else {
      Fail(entry.second.Mark(), item.name + ": expected a value or a list");
    }
    if (!skip_.contains(item.name)) items.push_back(std::move(item));
  }
  return items;
}

std::vector<std::string> ConfigKeys(const CLI::App& app) {
  std::vector<std::string> keys;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      if (name != "help" && name != "config" && name != "version" &&
          name != "check-config") {
        keys.push_back(name);
      }
    }
  }
  return keys;
}

std::set<std::string> KeysSetByEnvironment(const CLI::App& app) {
  std::set<std::string> keys;
  for (const CLI::Option* option : app.get_options()) {
    const std::string variable = option->get_envname();
    if (variable.empty() || std::getenv(variable.c_str()) == nullptr) continue;
    for (const std::string& name : option->get_lnames()) keys.insert(name);
  }
  return keys;
}

}  // namespace qlora
