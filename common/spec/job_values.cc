#include "common/spec/job_values.h"

#include <array>
#include <charconv>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/plural.h"

namespace qlora {
namespace {

constexpr std::array<std::string_view, 5> kFormatNames = {
    "chat", "prompt_completion", "alpaca", "text", "tokens"};

// Splits "200steps" or "200 steps" into number and lower-case unit.
struct Quantity {
  std::string_view number;
  std::string unit;
};

Quantity Split(std::string_view text) {
  size_t end = 0;
  while (end < text.size() &&
         (absl::ascii_isdigit(text[end]) || text[end] == '.')) {
    ++end;
  }
  std::string unit(text.substr(end));
  absl::StripAsciiWhitespace(&unit);
  absl::AsciiStrToLower(&unit);
  return {text.substr(0, end), unit};
}

template <typename T>
std::optional<T> FromChars(std::string_view text) {
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  T value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() ||
      text.empty()) {
    return std::nullopt;
  }
  return value;
}

}  // namespace

std::optional<int64_t> ParseInteger(std::string_view text) {
  return FromChars<int64_t>(text);
}

std::optional<double> ParseNumber(std::string_view text) {
  const std::optional<double> value = FromChars<double>(text);
  return value.has_value() && std::isfinite(*value) ? value : std::nullopt;
}

std::optional<absl::Duration> ParseDuration(std::string_view text) {
  absl::Duration duration;
  if (text.size() > 40 || !absl::ParseDuration(std::string(text), &duration) ||
      duration <= absl::ZeroDuration() ||
      duration == absl::InfiniteDuration()) {
    return std::nullopt;
  }
  return duration;
}

std::optional<Period> ParsePeriod(std::string_view text) {
  Period period;
  if (text == "never") return period;
  const auto [number, unit] = Split(text);
  if (unit.empty() || unit == "step" || unit == "steps") {
    const std::optional<int64_t> steps = ParseInteger(number);
    if (!steps.has_value() || *steps <= 0) return std::nullopt;
    period.steps = *steps;
  } else if (unit == "epoch" || unit == "epochs") {
    const std::optional<double> epochs = ParseNumber(number);
    if (!epochs.has_value() || *epochs <= 0) return std::nullopt;
    period.epochs = *epochs;
  } else {
    const std::optional<absl::Duration> time = ParseDuration(text);
    if (!time.has_value()) return std::nullopt;
    period.time = *time;
  }
  return period;
}

std::string FormatNumber(double value) {
  std::array<char, 32> buffer;
  const auto result =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return std::string(buffer.data(), result.ptr);
}

std::string FormatPeriod(const Period& period) {
  if (period.steps != 0) return Plural(period.steps, "step");
  if (period.epochs != 0) return FormatNumber(period.epochs) + " epochs";
  if (period.never()) return "never";
  return absl::FormatDuration(period.time);
}

std::string_view FormatName(DataFormat format) {
  return kFormatNames[static_cast<size_t>(format)];
}

std::optional<DataFormat> ParseFormat(std::string_view name) {
  for (size_t i = 0; i < kFormatNames.size(); ++i) {
    if (kFormatNames[i] == name) return static_cast<DataFormat>(i);
  }
  return std::nullopt;
}

std::string FormatNames() {
  return absl::StrJoin(
      kFormatNames, ", ",
      [](std::string* out, std::string_view name) { out->append(name); });
}

}  // namespace qlora
