// Softmax cross-entropy, a block for each row: one pass for the maximum and the
// sum together, one that writes the gradient over the logits.
#include <cmath>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

namespace qlora::kernels {
namespace {

// Of the launch bounds, which only nvcc reads.
[[maybe_unused]] constexpr int kThreads = 512;

// The sum of exp(z - max), without what is -inf.
struct Exponentials {
  float max = -INFINITY;
  float sum = 0;

  __device__ void Add(float z) {
    if (z == -INFINITY) return;
    if (z > max) {
      sum = sum * expf(max - z) + 1;
      max = z;
    } else {
      // A NaN comes here.
      sum += expf(z - max);
    }
  }
};

struct RowSums {
  float max, sum, lse;
};

// All threads get the row's sums; NaN where nothing or an infinity is largest.
__device__ RowSums Combine(const Exponentials& mine) {
  const float max = BlockMax(mine.max);
  const float share = mine.sum == 0 ? 0.0f : mine.sum * expf(mine.max - max);
  const float sum = isinf(max) ? NAN : BlockSum(share);
  return {max, sum, logf(sum) + max};
}

template <int N>
__global__ void __launch_bounds__(kThreads, 2)
    CrossEntropyRows(CrossEntropy op, bool packed) {
  const View& logits = op.logits;
  const LossOptions& o = op.options;
  const auto n = static_cast<float>(logits.columns);
  const auto capped = [&](float x) {
    return o.soft_cap > 0 ? o.soft_cap * tanhf(x / o.soft_cap) : x;
  };
  for (int64_t r = blockIdx.x; r < logits.rows; r += gridDim.x) {
    const int64_t target = op.targets[r];
    if (target < 0) {
      if (threadIdx.x == 0) op.loss[r] = 0;
      OverRow<N>(r, op.backward ? logits.columns : 0, packed,
                 [&](const Span<N>& at) { at.Store(Pack<N>{}, logits); });
      continue;
    }
    Exponentials mine;
    double total = 0;
    OverRow<N>(r, logits.columns, packed, [&](const Span<N>& at) {
      const Pack<N> x = at.Load(logits);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (j >= at.count) continue;
        const float z = capped(x.v[j]);
        mine.Add(z);
        if (o.label_smoothing > 0) total += z;
      }
    });
    const float picked =
        capped(LoadOne(logits.data, logits.dtype, r * logits.stride + target));
    // Also parts reading the target from writing it.
    const RowSums row = Combine(mine);
    const float s = o.label_smoothing;
    if (s > 0) total = BlockSum(total);
    if (threadIdx.x == 0) {
      double loss = (1 - double{s}) * (double{row.lse} - picked);
      if (s > 0) loss += s * (row.lse - total / n);
      if (o.z_loss > 0) loss += o.z_loss * double{row.lse} * row.lse;
      op.loss[r] = loss;
    }
    if (!op.backward) continue;
    const float pull = o.z_loss > 0 ? 1 + 2 * o.z_loss * row.lse : 1.0f;
    const float factor = pull / row.sum;
    OverRow<N>(r, logits.columns, packed, [&](const Span<N>& at) {
      Pack<N> x = at.Load(logits);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float z = capped(x.v[j]);
        const float ratio = o.soft_cap > 0 ? z / o.soft_cap : 0.0f;
        const float wanted = s / n + (at.c + j == target ? 1 - s : 0.0f);
        x.v[j] = o.scale * (expf(z - row.max) * factor - wanted) *
                 (1 - ratio * ratio);
      }
      at.Store(x, logits);
    });
  }
}

}  // namespace

Result Cuda::Do(const Launch& launch, const CrossEntropy& op) const {
  const bool wide = op.logits.dtype == Dtype::kFloat32;
  return Queue(launch, GridOver(op.logits.rows), ThreadsFor(op.logits.columns),
               wide ? CrossEntropyRows<4> : CrossEntropyRows<8>, op,
               IsPacked(op.logits, wide ? 4 : 8));
}

}  // namespace qlora::kernels
