#include "worker/trainer/ops/loss.h"

#include <algorithm>
#include <cstring>

#include "worker/trainer/data/batch.h"
#include "worker/trainer/ops/gemm.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/rows.h"
#include "worker/trainer/run_op.h"

namespace qlora::trainer {

namespace {

// Rows of the head that are multiplied at once: all where it can be used as it
// is stored, else what the buffer holds.
int64_t PanelRows(const LinearWeight& head, Dtype dtype, int64_t elements) {
  const bool direct = dtype == Dtype::kFloat32
                          ? head.format == WeightFormat::kFloat32
                          : head.format == WeightFormat::kBfloat16;
  return direct ? head.out_features
                : std::max<int64_t>(1, elements / head.in_features);
}

template <typename F>
void ForPanels(const LinearWeight& head, Dtype dtype, void* buffer,
               int64_t elements, F f) {
  const int64_t step = PanelRows(head, dtype, elements);
  for (int64_t begin = 0; begin < head.out_features; begin += step) {
    const int64_t end = std::min(head.out_features, begin + step);
    f(begin, MaterializeRows(head, begin, end, dtype, buffer));
  }
}

// Rows [0, n) of one chunk.
struct Chunk {
  const LossArgs& args;
  const int32_t* rows;
  int64_t n;
  View normed;
  View dnormed;
  View logits;
};

void NormChunk(const Chunk& c) {
  Parallel(c.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      RunOp({}, kernels::RmsNorm{.x = c.args.x.Rows(c.rows[r], 1),
                                 .weight = c.args.norm,
                                 .eps = c.args.norm_eps,
                                 .out = c.normed.Rows(r, 1),
                                 .rstd = c.args.rstd + r});
    }
  });
}

// Losses are added in the order of the rows.
double EntropyChunk(const Chunk& c, float scale, bool backward) {
  double total = 0;
  constexpr int64_t kBatch = 256;
  int32_t targets[kBatch];
  double losses[kBatch];
  for (int64_t first = 0; first < c.n; first += kBatch) {
    const int64_t count = std::min(kBatch, c.n - first);
    for (int64_t r = 0; r < count; ++r) {
      targets[r] = c.args.targets[c.rows[first + r]];
    }
    RunOp(KernelLaunch(),
          kernels::CrossEntropy{.logits = c.logits.Rows(first, count),
                                .targets = targets,
                                .scale = scale,
                                .backward = backward,
                                .loss = losses});
    for (int64_t r = 0; r < count; ++r) total += losses[r];
  }
  return total;
}

void AddHeadGrad(const Chunk& c, float* dhead) {
  const View grad =
      FloatView(dhead, c.args.head.out_features, c.args.head.in_features);
  if (c.args.dtype == Dtype::kFloat32) {
    Gemm(Op::kTransposed, c.logits, Op::kPlain, c.normed, 1, 1, grad);
    return;
  }
  const int64_t step =
      std::max<int64_t>(1, c.args.weight_elements / grad.columns);
  for (int64_t begin = 0; begin < grad.rows; begin += step) {
    const int64_t n = std::min(step, grad.rows - begin);
    const View product = MakeView(c.args.weight, c.args.dtype, n, grad.columns);
    Gemm(Op::kTransposed, c.logits.Columns(begin, n), Op::kPlain, c.normed, 1,
         0, product);
    AddTo(product, grad.Rows(begin, n));
  }
}

void BackwardChunk(const Chunk& c, const LossGrads& grads) {
  const LossArgs& args = c.args;
  if (grads.dhead != nullptr) AddHeadGrad(c, grads.dhead);
  ForPanels(args.head, args.dtype, args.weight, args.weight_elements,
            [&](int64_t begin, const View& w) {
              Gemm(Op::kPlain, c.logits.Columns(begin, w.rows), Op::kPlain, w,
                   1, begin == 0 ? 0 : 1, c.dnormed);
            });
  // The weight's gradient is summed in the order of the rows.
  Parallel(
      c.n, grads.dnorm == nullptr ? 16 : c.n, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          RunOp({}, kernels::RmsNormBackward{.x = args.x.Rows(c.rows[r], 1),
                                             .weight = args.norm,
                                             .rstd = args.rstd + r,
                                             .dy = c.dnormed.Rows(r, 1),
                                             .dx = grads.dx.Rows(c.rows[r], 1),
                                             .dweight = grads.dnorm});
        }
      });
}

double ForChunks(const LossArgs& args, float scale, const LossGrads* grads) {
  int64_t trained = 0;
  for (size_t t = 0; t < args.targets.size(); ++t) {
    if (args.targets[t] != kIgnoredLabel) {
      args.rows[trained++] = static_cast<int32_t>(t);
    }
  }
  double total = 0;
  for (int64_t first = 0; first < trained; first += args.chunk) {
    const int64_t n = std::min(args.chunk, trained - first);
    const int64_t hidden = args.x.columns;
    const Chunk chunk = {
        args,
        args.rows + first,
        n,
        MakeView(args.normed, args.dtype, n, hidden),
        MakeView(args.dnormed, args.dtype, n, hidden),
        MakeView(args.logits, args.dtype, n, args.head.out_features)};
    NormChunk(chunk);
    HeadLogits(args.head, chunk.normed, args.weight, args.weight_elements,
               chunk.logits);
    total += EntropyChunk(chunk, scale, grads != nullptr);
    if (grads != nullptr) BackwardChunk(chunk, *grads);
  }
  return total;
}

}  // namespace

void HeadLogits(const LinearWeight& head, const View& x, void* weight,
                int64_t weight_elements, const View& logits) {
  ForPanels(head, x.dtype, weight, weight_elements,
            [&](int64_t begin, const View& w) {
              Gemm(Op::kPlain, x, Op::kTransposed, w, 1, 0,
                   logits.Columns(begin, w.rows));
            });
}

double Loss(const LossArgs& args) { return ForChunks(args, 0, nullptr); }

double LossBackward(const LossArgs& args, float scale, const LossGrads& grads) {
  Parallel(grads.dx.rows, 64, [&](int64_t begin, int64_t end) {
    std::memset(grads.dx.row<float>(begin), 0,
                (end - begin) * grads.dx.columns * sizeof(float));
  });
  return ForChunks(args, scale, &grads);
}

}  // namespace qlora::trainer
