// Numbers as people read them. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace qlora {

// "1.5 MiB", "812 B".
std::string FormatBytes(int64_t bytes);

}  // namespace qlora
