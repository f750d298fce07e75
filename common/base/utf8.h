// UTF-8 text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace qlora {

// The length of the valid UTF-8 sequence that text, which is not empty, begins
// with; 0 if it does not begin with one.
size_t Utf8Length(std::string_view text);

// `text` with every byte that is no valid UTF-8 replaced by '?': protobuf
// strings must be valid.
std::string ToValidUtf8(std::string_view text);

// Valid text of at most max_bytes (10 or more): `text`, which is valid, or its
// beginning, " ... " and its end.
std::string Abridged(std::string_view text, size_t max_bytes);

}  // namespace qlora
