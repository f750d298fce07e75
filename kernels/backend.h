// One op, one schema, many backends: the way into the kernel library. An op is
// a struct of its arguments, in the headers below, which say what it computes:
//
//   backend.Run(launch, RmsNorm{.x = x, .weight = w, .out = out, .rstd = r});
//
// Backends are stateless and ops re-entrant; an op allocates nothing and starts
// no threads. Buffers are on the backend's device; there the op is queued on
// the stream.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/checks.h"
#include "kernels/ops.h"
#include "kernels/types.h"

namespace qlora::kernels {

class Backend {
 public:
  virtual ~Backend() = default;

  // "reference", "avx512", "cuda".
  virtual std::string_view name() const = 0;

  // Checks the arguments, the same way for every backend and in every build,
  // then runs. A backend that lacks the op says kUnsupported.
  template <typename Op>
  Result Run(const Launch& launch, const Op& op) const {
    if (!IsValid(op) || !HasRoom(launch, WorkspaceBytes(op, launch.threads)) ||
        (ReadsHostMemory() &&
         (launch.parallel_for == nullptr || !AreIndicesValid(op)))) {
      return Result::kInvalidArgument;
    }
    return Do(launch, op);
  }

  // What Launch must bring; `threads` is its number. 0 for most ops. Of the
  // others only the fields are read that their comments name, and where one of
  // them or `threads` is ruled out the answer is 0.
  template <typename Op>
  int64_t WorkspaceBytes(const Op& op, int threads) const {
    return IsSized(op) && AreThreads(threads) ? Room(op, threads) : 0;
  }

 private:
  // Then what buffers name (tokens, positions, targets) is checked too, and
  // parallel_for, which a device does without.
  virtual bool ReadsHostMemory() const { return true; }
#define QLORA_LACKS_OP(Op)                            \
  virtual Result Do(const Launch&, const Op&) const { \
    return Result::kUnsupported;                      \
  }                                                   \
  virtual int64_t Room(const Op&, int /*threads*/) const { return 0; }
  QLORA_ALL_OPS(QLORA_LACKS_OP)
#undef QLORA_LACKS_OP
};

// Plain loops, the definition of every op.
const Backend& ReferenceBackend();
// One for each instruction set that this processor has, the fastest first;
// never empty.
std::span<const Backend* const> CpuBackends();
// Null without a usable device; then WhyNoCuda() says what is missing.
const Backend* CudaBackend();
std::string_view WhyNoCuda();
// The same of Apple's devices; so far null everywhere (metal/no_metal.cc).
const Backend* MetalBackend();
std::string_view WhyNoMetal();

// What a backend's class declares of an op that it has, given to ops.h's lists;
// the second of one that needs workspace.
#define QLORA_HAS_OP(Op) \
  Result Do(const Launch& launch, const Op& op) const override;
#define QLORA_HAS_OP_AND_ROOM(Op) \
  QLORA_HAS_OP(Op)                \
  int64_t Room(const Op& op, int threads) const override;

}  // namespace qlora::kernels
