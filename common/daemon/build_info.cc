#include "common/daemon/build_info.h"

#include "qlora_revision.h"

namespace qlora {

std::map<std::string, std::string> BuildInfo() {
  return {{"version", QLORA_VERSION},
          {"revision", QLORA_REVISION},
          {"torch", QLORA_TORCH_VERSION},
          {"cuda", "none"}};
}

}  // namespace qlora
