// Counted things in messages.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace qlora {

// "1 rank", "2 ranks"; for nouns that only take an s.
inline std::string Plural(int64_t count, std::string_view noun) {
  std::string text = std::to_string(count);
  text.append(" ").append(noun);
  if (count != 1) text += 's';
  return text;
}

}  // namespace qlora
