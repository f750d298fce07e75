// What this program was built from.
#pragma once

#include <map>
#include <string>

namespace qlora {

// The labels of qlora_build_info: version, revision (cmake/Revision.cmake),
// torch (of the trainer that was built along), cuda ("none": CPU only).
std::map<std::string, std::string> BuildInfo();

}  // namespace qlora
