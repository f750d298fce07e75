#include "common/daemon/value_options.h"

#include <optional>

#include "common/base/format.h"

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

CLI::Option* AddBytesOption(CLI::App& app, const std::string& flag,
                            int64_t* value, const std::string& help) {
  return app.add_option_function<std::string>(
      flag,
      [value, flag](const std::string& text) {
        const std::optional<int64_t> bytes = ParseBytes(text);
        if (!bytes.has_value()) {
          throw CLI::ValidationError(
              flag, "\"" + text + "\" is no size such as 64GiB");
        }
        *value = *bytes;
      },
      help + " (default " + FormatBytes(*value) + ")");
}

}  // namespace qlora
