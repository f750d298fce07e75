// CRC-32C (Castagnoli), the check of every record in an append-only file.
// Thread-safe.
#pragma once

#include <cstdint>
#include <string_view>

namespace qlora {

// Of `bytes` appended to what `crc` covers; 0 covers nothing.
uint32_t Crc32c(std::string_view bytes, uint32_t crc = 0);

}  // namespace qlora
