#include "client/names.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/errors.h"

namespace qlora::client {

std::string RegistryName(const std::string& text) {
  constexpr size_t kLongest = 63;
  std::string name;
  for (const char c : absl::AsciiStrToLower(text)) {
    const bool letter = absl::ascii_isalnum(c);
    if (name.empty() && !letter) continue;
    const bool kept = letter || c == '.' || c == '_' || c == '-';
    // What is no character of a name becomes one '-'.
    if (!kept && name.back() == '-') continue;
    if (name.size() < kLongest) name += kept ? c : '-';
  }
  while (!name.empty() && name.back() == '-') name.pop_back();
  return name;
}

absl::StatusOr<std::string> ChooseName(const std::string& name,
                                       const std::string& from) {
  constexpr char kRule[] =
      "1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit";
  const std::string valid = RegistryName(name.empty() ? from : name);
  if (name.empty()) {
    if (!valid.empty()) return valid;
    return UsageError(
        absl::StrCat("give --name, since ", from, " makes none: ", kRule));
  }
  if (name == valid) return name;
  return UsageError(absl::StrCat(
      "--name ", name, ": must be ", kRule,
      valid.empty() ? "" : absl::StrCat("; for instance ", valid)));
}

}  // namespace qlora::client
