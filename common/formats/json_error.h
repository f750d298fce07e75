// Says in plain words where and why a text is no JSON. Stateless; any thread.
#pragma once

#include <string>
#include <string_view>

namespace qlora {

// The first place where the text stops being JSON and what is wrong there: "at
// column 17: a comma is missing before this"; of several lines "at line 3,
// column 5: ...". Columns count characters from 1. The words repeat nothing of
// the text. Empty if the text is JSON.
std::string JsonError(std::string_view text);

}  // namespace qlora
