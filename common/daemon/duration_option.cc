#include "common/daemon/duration_option.h"

namespace qlora {

CLI::Option* AddDurationOption(CLI::App& app, const std::string& flag,
                               absl::Duration* value, const std::string& help) {
  return app.add_option_function<std::string>(
      flag,
      [value, flag](const std::string& text) {
        if (!absl::ParseDuration(text, value) ||
            *value < absl::ZeroDuration() ||
            *value == absl::InfiniteDuration()) {
          throw CLI::ValidationError(
              flag, "\"" + text + "\" is no duration such as 30s");
        }
      },
      help + " (default " + absl::FormatDuration(*value) + ")");
}

}  // namespace qlora
