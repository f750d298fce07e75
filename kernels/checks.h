// The one check of every op's arguments, for every backend and build.
#pragma once

#include <cstdint>

#include "kernels/ops.h"
#include "kernels/types.h"

namespace qlora::kernels {

// The part of IsValid about what Backend::WorkspaceBytes reads, which the
// comments of ops that need workspace name.
template <typename Op>
bool IsSized(const Op&) {
  return true;
}
#define QLORA_SIZED_OP(Op) bool IsSized(const Op& op);
QLORA_WORKSPACE_OPS(QLORA_SIZED_OP)
QLORA_CPU_OPS(QLORA_SIZED_OP)
#undef QLORA_SIZED_OP

// False for what the op's comment rules out, as far as the host can see it:
// nothing behind a pointer is read but what is said to be on the host.
#define QLORA_CHECK_OP(Op) bool IsValid(const Op& op);
QLORA_ALL_OPS(QLORA_CHECK_OP)
#undef QLORA_CHECK_OP

// The same of what lies in buffers, for ops that look something up by it.
template <typename Op>
bool AreIndicesValid(const Op&) {
  return true;
}
bool AreIndicesValid(const Rotary& op);
bool AreIndicesValid(const RotaryNormBackward& op);
bool AreIndicesValid(const Embedding& op);
bool AreIndicesValid(const EmbeddingBackward& op);
bool AreIndicesValid(const CrossEntropy& op);
bool AreIndicesValid(const HeadLoss& op);

// In the range of Launch::threads.
bool AreThreads(int threads);

// The launch brings `bytes` of aligned workspace, and its threads are in range.
bool HasRoom(const Launch& launch, int64_t bytes);

}  // namespace qlora::kernels
