// How far a word is from another, for "did you mean". Thread-safe.
#pragma once

#include <cstddef>
#include <string_view>

namespace qlora {

// Insertions, deletions, substitutions and swaps of neighbours.
size_t EditDistance(std::string_view a, std::string_view b);

}  // namespace qlora
