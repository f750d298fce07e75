// Flags that take a duration or a size. Used while the command line is set up.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace qlora {

// A flag such as "--lease 30s" (absl::ParseDuration), finite and not negative;
// the help ends with its present value as the default. value must outlive the
// parsing.
CLI::Option* AddDurationOption(CLI::App& app, const std::string& flag,
                               absl::Duration* value, const std::string& help);

// A flag such as "--cache-limit 64GiB" (ParseBytes). The rest as above.
CLI::Option* AddBytesOption(CLI::App& app, const std::string& flag,
                            int64_t* value, const std::string& help);

}  // namespace qlora
