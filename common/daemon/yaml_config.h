// A daemon's configuration file for CLI11: a flat YAML map whose keys are the
// long flags without their dashes ("data-dir: /var/lib/qlora"); a list gives a
// repeated flag several values. A flag on the command line wins over its
// environment variable, and that over the file.
//
//   app.set_config("--config", "", "...");
//   app.config_formatter(std::make_shared<YamlConfig>(
//       ConfigKeys(app), KeysSetByEnvironment(app)));
#pragma once

#include <CLI/CLI.hpp>
#include <istream>
#include <set>
#include <string>
#include <vector>

namespace qlora {

class YamlConfig : public CLI::Config {
 public:
  // skip: keys whose values in the file do not count.
  explicit YamlConfig(std::vector<std::string> keys,
                      std::set<std::string> skip = {})
      : keys_(std::move(keys)), skip_(std::move(skip)) {}

  // Throws CLI::ConfigError with line, column, the key and, for a
  // misspelled one, what was probably meant.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;
  // Not offered.
  std::string to_config(const CLI::App*, bool, bool,
                        std::string) const override {
    return "";
  }

 private:
  const std::vector<std::string> keys_;
  const std::set<std::string> skip_;
};

// The long names of an app's options, without dashes: what its file may hold.
std::vector<std::string> ConfigKeys(const CLI::App& app);

// Those of them that the environment sets now. CLI11 itself would let the file
// win over these.
std::set<std::string> KeysSetByEnvironment(const CLI::App& app);

}  // namespace qlora
