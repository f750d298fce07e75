// Flags that take a duration. Used while the command line is set up.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "absl/time/time.h"

namespace qlora {

// A flag such as "--lease 30s" (absl::ParseDuration), finite and not negative;
// the help ends with its present value as the default. value must outlive the
// parsing.
CLI::Option* AddDurationOption(CLI::App& app, const std::string& flag,
                               absl::Duration* value, const std::string& help);

}  // namespace qlora
