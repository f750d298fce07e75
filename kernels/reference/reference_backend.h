// Plain loops: slow, and what every other backend is tested against.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/backend.h"

namespace qlora::kernels {

class Reference final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }

 private:
  QLORA_PLAIN_OPS(QLORA_HAS_OP)
  QLORA_WORKSPACE_OPS(QLORA_HAS_OP_AND_ROOM)
  QLORA_CPU_OPS(QLORA_HAS_OP_AND_ROOM)
};

}  // namespace qlora::kernels
