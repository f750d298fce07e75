#include "common/base/format.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace qlora {

std::string FormatBytes(int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return absl::StrCat(bytes, " B");
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::optional<int64_t> ParseBytes(std::string_view text) {
  const size_t end =
      std::min(text.find_first_not_of("0123456789."), text.size());
  double value = 0;
  const auto [rest, error] =
      std::from_chars(text.data(), text.data() + end, value);
  if (error != std::errc() || rest != text.data() + end) return std::nullopt;
  std::string unit(text.substr(end));
  absl::StripAsciiWhitespace(&unit);
  absl::AsciiStrToLower(&unit);
  if (!unit.empty() && unit != "b") {
    const size_t prefix = std::string_view("kmgt").find(unit[0]);
    const std::string power = unit.substr(1);
    if (prefix == std::string_view::npos ||
        (power != "ib" && power != "b" && power != "i")) {
      return std::nullopt;
    }
    value *= std::pow(power == "b" ? 1000.0 : 1024.0, prefix + 1.0);
  }
  // 2^53: exact in a double.
  if (!(value <= 9007199254740992.0)) return std::nullopt;
  return static_cast<int64_t>(value);
}

}  // namespace qlora
