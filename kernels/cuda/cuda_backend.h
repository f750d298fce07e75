// The ops on NVIDIA devices, compute capability 8.0 and up. Ops are queued on
// Launch::stream of the current device; they allocate nothing and wait for
// nothing, so they can be captured in a graph. All types are there. Attention
// and the head are not: those stay with LibTorch's kernels.
//
// CUDA loads a kernel's code when it is first launched, which may allocate and
// wait: run what is to be captured once before, with its types and sizes.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/backend.h"

namespace qlora::kernels {

class Cuda final : public Backend {
 public:
  std::string_view name() const override { return "cuda"; }

 private:
  bool ReadsHostMemory() const override { return false; }
  QLORA_PLAIN_OPS(QLORA_HAS_OP)
  QLORA_WORKSPACE_OPS(QLORA_HAS_OP_AND_ROOM)
};

}  // namespace qlora::kernels
