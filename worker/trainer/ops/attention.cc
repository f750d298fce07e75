#include "worker/trainer/ops/attention.h"

#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/run_op.h"

namespace qlora::trainer {
namespace {

kernels::Attention MakeOp(const AttentionArgs& args) {
  return {.heads = args.shape.heads,
          .kv_heads = args.shape.kv_heads,
          .dim = args.shape.dim,
          .offsets = args.offsets.data(),
          .documents = static_cast<int64_t>(args.offsets.size()) - 1,
          .past = args.past,
          .q = args.q,
          .k = args.k,
          .v = args.v,
          .out = args.out,
          .lse = args.lse};
}

template <typename Op>
void Run(const AttentionArgs& args, const Op& op) {
  const int threads = NumThreads();
  RunOp({.parallel_for = KernelParallelFor(),
         .threads = threads,
         .workspace = args.scratch,
         .workspace_bytes = KernelBackend().WorkspaceBytes(op, threads)},
        op);
}

}  // namespace

int64_t AttentionScratchBytes(const AttentionShape& shape, int64_t max_keys,
                              int threads) {
  const int32_t offsets[] = {0, static_cast<int32_t>(max_keys)};
  const kernels::Attention op = {.heads = shape.heads,
                                 .kv_heads = shape.kv_heads,
                                 .dim = shape.dim,
                                 .offsets = offsets,
                                 .documents = 1};
  return KernelBackend().WorkspaceBytes(
      kernels::AttentionBackward{.forward = op}, threads);
}

void Attention(const AttentionArgs& args) { Run(args, MakeOp(args)); }

void AttentionBackward(const AttentionArgs& args, const View& dout,
                       const View& dq, const View& dk, const View& dv) {
  Run(args,
      kernels::AttentionBackward{
          .forward = MakeOp(args), .dout = dout, .dq = dq, .dk = dk, .dv = dv});
}

}  // namespace qlora::trainer
