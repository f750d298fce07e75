// Values as people write them in a job file. Stateless. Internal to
// common/spec.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "common/spec/job_spec.h"

namespace qlora {

// The whole text must be a number; nullopt also when it overflows.
std::optional<int64_t> ParseInteger(std::string_view text);
std::optional<double> ParseNumber(std::string_view text);

// "30m", "1h30m"; positive.
std::optional<absl::Duration> ParseDuration(std::string_view text);

// "200", "200 steps", "0.5 epochs", "30m", "never".
std::optional<Period> ParsePeriod(std::string_view text);

// The inverses: the shortest text that parses to the same value.
std::string FormatNumber(double value);
std::string FormatPeriod(const Period& period);

std::string_view FormatName(DataFormat format);
std::optional<DataFormat> ParseFormat(std::string_view name);
// "chat, prompt_completion, ...".
std::string FormatNames();

}  // namespace qlora
