#include "common/daemon/command_line.h"

#include <cctype>
#include <cstdio>

namespace qlora {
namespace {

// Empty without one.
std::string ConfigFile(const CLI::App& app) {
  const CLI::Option* config = app.get_config_ptr();
  return config == nullptr || config->empty() ? "" : config->results().front();
}

bool Names(const std::string& message, const std::string& flag) {
  const size_t at = message.find(flag);
  const char next =
      at == std::string::npos || at + flag.size() == message.size()
          ? ' '
          : message[at + flag.size()];
  return at != std::string::npos && next != '-' &&
         std::isalnum(static_cast<unsigned char>(next)) == 0;
}

// The same value on the command line would be as wrong.
bool NamesWhatTheFileSets(const CLI::App& app, const std::string& file,
                          const std::string& message) {
  try {
    for (const CLI::ConfigItem& item :
         app.get_config_formatter()->from_file(file)) {
      const std::string flag = "--" + item.name;
      const CLI::Option* option = app.get_option_no_throw(flag);
      if (option != nullptr && item.inputs == option->results() &&
          Names(message, flag)) {
        return true;
      }
    }
  } catch (const CLI::Error&) {
    // The message is about that, and not about a value.
  }
  return false;
}

}  // namespace

std::string WithConfigFile(const CLI::App& app, const std::string& message) {
  const std::string file = ConfigFile(app);
  return !file.empty() && NamesWhatTheFileSets(app, file, message)
             ? file + ": " + message
             : message;
}

int EndParsing(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return app.exit(error);
  std::string message = error.what();
  if (dynamic_cast<const CLI::FileError*>(&error) != nullptr) {
    message = "--config " + ConfigFile(app) + ": cannot be read";
  } else if (dynamic_cast<const CLI::ConfigError*>(&error) != nullptr) {
    message = ConfigFile(app) + ": " + message;
  } else {
    message = WithConfigFile(app, message);
  }
  std::fprintf(stderr, "error: %s\nhint: %s --help\n", message.c_str(),
               app.get_name().c_str());
  return 2;
}

}  // namespace qlora
