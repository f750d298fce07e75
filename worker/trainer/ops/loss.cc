#include "worker/trainer/ops/loss.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "worker/trainer/ops/gemm.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/rows.h"
#include "worker/trainer/run_op.h"

namespace qlora::trainer {
namespace {

double Run(const LossArgs& args, float scale, const LossGrads* grads) {
  const auto like_x = [&](void* data) {
    return MakeView(data, args.dtype, args.x.rows, args.x.columns);
  };
  kernels::HeadLoss op;
  op.x = like_x(args.normed);
  op.weight = StoredTable(args.head);
  op.targets = args.targets.data();
  op.options.scale = scale;
  op.chunk = args.chunk;
  op.gemm = KernelGemm;
  op.loss = args.losses;
  if (grads != nullptr) {
    op.dx = like_x(args.dnormed);
    if (grads->dhead != nullptr) {
      op.dweight = FloatView(grads->dhead, op.weight.rows, op.weight.columns);
    }
  }
  RmsNorm(args.x, args.norm, args.norm_eps, op.x, args.rstd);
  RunOp({.parallel_for = KernelParallelFor(),
         .threads = NumThreads(),
         .workspace = args.scratch,
         .workspace_bytes = args.scratch_bytes},
        op);
  if (grads != nullptr) {
    Parallel(grads->dx.rows, 64, [&](int64_t begin, int64_t end) {
      std::memset(grads->dx.row<float>(begin), 0,
                  (end - begin) * grads->dx.columns * sizeof(float));
    });
    RmsNormBackward(args.x, args.norm, args.rstd, op.dx, grads->dx,
                    grads->dnorm);
  }
  return std::accumulate(op.loss, op.loss + args.x.rows, 0.0);
}

}  // namespace

int64_t LossScratchBytes(Dtype dtype, int64_t tokens, int64_t chunk,
                         int64_t vocab, int64_t hidden) {
  // Whatever type the head is stored in, and with all gradients: there is data.
  char data = 0;
  kernels::HeadLoss op;
  op.x = op.dx = MakeView(&data, dtype, tokens, hidden);
  op.weight = MakeView(&data, Dtype::kFloat16, vocab, hidden);
  op.dweight = MakeView(&data, Dtype::kFloat32, vocab, hidden);
  op.chunk = chunk;
  return KernelBackend().WorkspaceBytes(op, 1);
}

double Loss(const LossArgs& args) { return Run(args, 0, nullptr); }

double LossBackward(const LossArgs& args, float scale, const LossGrads& grads) {
  return Run(args, scale, &grads);
}

void HeadLogits(const LinearWeight& head, const View& x, void* weight,
                int64_t weight_elements, const View& logits) {
  const bool direct = StoredTable(head).dtype == x.dtype;
  const int64_t step =
      direct ? head.out_features
             : std::max<int64_t>(1, weight_elements / head.in_features);
  for (int64_t begin = 0; begin < head.out_features; begin += step) {
    const int64_t end = std::min(head.out_features, begin + step);
    const View w = MaterializeRows(head, begin, end, x.dtype, weight);
    Gemm(Op::kPlain, x, Op::kTransposed, w, 1, 0,
         logits.Columns(begin, w.rows));
  }
}

}  // namespace qlora::trainer
