// Numbers as people read and write them. Thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace qlora {

// "1.5 MiB", "812 B".
std::string FormatBytes(int64_t bytes);

// "40GiB", "512 MB", "1024"; not negative.
std::optional<int64_t> ParseBytes(std::string_view text);

}  // namespace qlora
