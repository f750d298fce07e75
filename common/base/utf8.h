// UTF-8 text.
#pragma once

#include <string>
#include <string_view>

namespace qlora {

// `text` with every byte that is no valid UTF-8 replaced by '?': protobuf
// strings must be valid.
std::string ToValidUtf8(std::string_view text);

}  // namespace qlora
