// A daemon's configuration file for CLI11: a flat YAML map whose keys are the
// long flags without their dashes ("data-dir: /var/lib/qlora"); a list gives a
// repeated flag several values. CLI11 puts flags and environment above it.
//
//   app.set_config("--config", "", "...");
//   app.config_formatter(std::make_shared<YamlConfig>(keys));
#pragma once

#include <CLI/CLI.hpp>
#include <istream>
#include <string>
#include <vector>

namespace qlora {

class YamlConfig : public CLI::Config {
 public:
  explicit YamlConfig(std::vector<std::string> keys) : keys_(std::move(keys)) {}

  // Throws CLI::ConversionError with line, column, the key and, for a
  // misspelled one, what was probably meant.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;
  // Not offered.
  std::string to_config(const CLI::App*, bool, bool,
                        std::string) const override {
    return "";
  }

 private:
  const std::vector<std::string> keys_;
};

// The long names of an app's options, without dashes: what its file may hold.
std::vector<std::string> ConfigKeys(const CLI::App& app);

}  // namespace qlora
