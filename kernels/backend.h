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

#include "kernels/attention.h"
#include "kernels/blockwise.h"
#include "kernels/checks.h"
#include "kernels/cross_entropy.h"
#include "kernels/head_loss.h"
#include "kernels/optimizer.h"
#include "kernels/rows.h"
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
    if (!IsValid(op) || !HasRoom(launch, WorkspaceBytes(op, launch.threads))) {
      return Result::kInvalidArgument;
    }
    return Do(launch, op);
  }

  // What Launch must bring; `threads` is its number. 0 for most ops.
  template <typename Op>
  int64_t WorkspaceBytes(const Op& op, int threads) const {
    return Room(op, threads);
  }

 private:
  virtual Result Do(const Launch&, const Quantize&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const Dequantize&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const QuantizeInt8Rows&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const DequantizeInt8Rows&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const QuantizeDynamic&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const DequantizeDynamic&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const RmsNorm&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const RmsNormBackward&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const LayerNorm&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const LayerNormBackward&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const Rotary&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const RotaryNormBackward&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const GatedActivation&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const GatedActivationBackward&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const Dropout&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const Embedding&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const EmbeddingBackward&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const Convert&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const Add&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const ColumnSums&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const CrossEntropy&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const AdamW&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const SumOfSquares&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const Attention&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const AttentionBackward&) const {
    return Result::kUnsupported;
  }
  virtual Result Do(const Launch&, const HeadLoss&) const {
    return Result::kUnsupported;
  }

  // Workspace of the ops that need some; the last is every other op's.
  virtual int64_t Room(const Quantize&, int /*threads*/) const { return 0; }
  virtual int64_t Room(const AdamW&, int /*threads*/) const { return 0; }
  virtual int64_t Room(const SumOfSquares&, int /*threads*/) const { return 0; }
  virtual int64_t Room(const Attention&, int /*threads*/) const { return 0; }
  virtual int64_t Room(const AttentionBackward&, int /*threads*/) const {
    return 0;
  }
  virtual int64_t Room(const HeadLoss&, int /*threads*/) const { return 0; }
  template <typename Op>
  int64_t Room(const Op&, int /*threads*/) const {
    return 0;
  }
};

// Plain loops, the definition of every op.
const Backend& ReferenceBackend();
// One for each instruction set that this processor has, the fastest first;
// never empty.
std::span<const Backend* const> CpuBackends();
// Null without a usable device; then WhyNoCuda() says what is missing.
const Backend* CudaBackend();
std::string_view WhyNoCuda();

}  // namespace qlora::kernels
