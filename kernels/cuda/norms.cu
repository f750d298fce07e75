// RMSNorm and LayerNorm, a block for each row; a row is read again from the
// caches. Gradients of weights are sums over a tile of columns, the rows of
// each thread and then the threads in order.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

namespace qlora::kernels {
namespace {

// Of the launch bounds, which only nvcc reads.
[[maybe_unused]] constexpr int kMostThreads = 512;

// x += add, and the sum of f(x) over the row.
template <typename F>
__device__ float AddAndSum(const View& x, const View& add, int64_t r,
                           bool packed, F f) {
  float sum = 0;
  OverRow<4>(r, x.columns, packed, [&](const Span<4>& at) {
    Pack<4> values = at.Load(x);
    if (add.data != nullptr) {
      const Pack<4> more = at.Load(add);
#pragma unroll
      for (int j = 0; j < 4; ++j) values.v[j] += more.v[j];
      at.Store(values, x);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < at.count) sum += f(values.v[j]);
    }
  });
  return BlockSum(sum);
}

__device__ float ReciprocalRoot(float mean_square, float eps) {
  return __frcp_rn(__fsqrt_rn(mean_square + eps));
}

__global__ void __launch_bounds__(kMostThreads)
    RmsNormRows(RmsNorm op, bool packed) {
  const auto n = static_cast<float>(op.x.columns);
  for (int64_t r = blockIdx.x; r < op.x.rows; r += gridDim.x) {
    const float squares =
        AddAndSum(op.x, op.add, r, packed, [](float x) { return x * x; });
    const float rstd = ReciprocalRoot(squares / n, op.eps);
    if (threadIdx.x == 0) op.rstd[r] = rstd;
    OverRow<4>(r, op.x.columns, packed, [&](const Span<4>& at) {
      const Pack<4> x = at.Load(op.x), weight = at.Load(op.weight);
      Pack<4> out;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out.v[j] = x.v[j] * rstd * (weight.v[j] + op.weight_offset);
      }
      at.Store(out, op.out);
    });
  }
}

__global__ void __launch_bounds__(kMostThreads)
    LayerNormRows(LayerNorm op, bool packed) {
  const auto n = static_cast<float>(op.x.columns);
  for (int64_t r = blockIdx.x; r < op.x.rows; r += gridDim.x) {
    const float mean =
        AddAndSum(op.x, op.add, r, packed, [](float x) { return x; }) / n;
    const float squares = AddAndSum(op.x, View{}, r, packed, [mean](float x) {
      return (x - mean) * (x - mean);
    });
    const float rstd = ReciprocalRoot(squares / n, op.eps);
    if (threadIdx.x == 0) {
      op.mean[r] = mean;
      op.rstd[r] = rstd;
    }
    OverRow<4>(r, op.x.columns, packed, [&](const Span<4>& at) {
      const Pack<4> x = at.Load(op.x), weight = at.Load(op.weight);
      Pack<4> bias = {};
      if (op.bias != nullptr) bias = at.Load(op.bias);
      Pack<4> out;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out.v[j] = (x.v[j] - mean) * rstd * weight.v[j] + bias.v[j];
      }
      at.Store(out, op.out);
    });
  }
}

// Both norms' gradients as one; RMSNorm has no means.
struct NormGradient {
  View x;
  const float* weight;
  float weight_offset;
  const float* mean;
  const float* rstd;
  View dy;
  View dx;

  struct Terms {
    Pack<4> g, hat;
  };
  __device__ Terms At(const Span<4>& at, float mean_r, float rstd_r) const {
    const Pack<4> xs = at.Load(x), dys = at.Load(dy), w = at.Load(weight);
    Terms t;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool inside = j < at.count;
      t.g.v[j] = inside ? dys.v[j] * (w.v[j] + weight_offset) : 0.0f;
      t.hat.v[j] = inside ? (xs.v[j] - mean_r) * rstd_r : 0.0f;
    }
    return t;
  }
};

// dx += rstd * (g - mean(g) - hat * mean(g * hat)).
__global__ void __launch_bounds__(kMostThreads, 2)
    NormGradientRows(NormGradient op, bool packed) {
  const auto n = static_cast<float>(op.x.columns);
  for (int64_t r = blockIdx.x; r < op.x.rows; r += gridDim.x) {
    const float rstd = op.rstd[r];
    const float mean = op.mean == nullptr ? 0.0f : op.mean[r];
    float g_sum = 0, dot_sum = 0;
    OverRow<4>(r, op.x.columns, packed, [&](const Span<4>& at) {
      const NormGradient::Terms t = op.At(at, mean, rstd);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        g_sum += t.g.v[j];
        dot_sum += t.g.v[j] * t.hat.v[j];
      }
    });
    const float dot = BlockSum(dot_sum) / n;
    const float g_mean = op.mean == nullptr ? 0.0f : BlockSum(g_sum) / n;
    OverRow<4>(r, op.x.columns, packed, [&](const Span<4>& at) {
      const NormGradient::Terms t = op.At(at, mean, rstd);
      Pack<4> dx = at.Load(op.dx);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        dx.v[j] += rstd * (t.g.v[j] - g_mean - t.hat.v[j] * dot);
      }
      at.Store(dx, op.dx);
    });
  }
}

constexpr int kTile = 32;

// sum(0, c) of the threads below each other in a block of kTile x kTile.
__device__ float ColumnSum(float value, float (*sums)[kTile + 1]) {
  sums[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  float sum = 0;
  for (int y = 0; y < kTile; ++y) sum += sums[y][threadIdx.x];
  __syncthreads();
  return sum;
}

// dweight[c] += sum of hat * dy, dbias[c] += sum of dy; a block a tile of
// columns.
__global__ void __launch_bounds__(kTile* kTile)
    WeightGradient(NormGradient op, float* dweight, float* dbias) {
  __shared__ float sums[kTile][kTile + 1];
  const int64_t tiles = CeilDiv(op.x.columns, kTile);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t c = tile * kTile + threadIdx.x;
    float weight_sum = 0, bias_sum = 0;
    for (int64_t r = threadIdx.y; c < op.x.columns && r < op.x.rows;
         r += kTile) {
      const float x = LoadOne(op.x.data, op.x.dtype, r * op.x.stride + c);
      const float dy = LoadOne(op.dy.data, op.dy.dtype, r * op.dy.stride + c);
      const float mean = op.mean == nullptr ? 0.0f : op.mean[r];
      weight_sum += (x - mean) * op.rstd[r] * dy;
      bias_sum += dy;
    }
    const float weight_total = ColumnSum(weight_sum, sums);
    const float bias_total = ColumnSum(bias_sum, sums);
    if (threadIdx.y != 0 || c >= op.x.columns) continue;
    if (dweight != nullptr) dweight[c] += weight_total;
    if (dbias != nullptr) dbias[c] += bias_total;
  }
}

Result RunGradient(const Launch& launch, const NormGradient& op, float* dweight,
                   float* dbias) {
  if (op.x.rows == 0) return Result::kOk;
  if (dweight != nullptr || dbias != nullptr) {
    const Result result =
        Queue(launch, GridOver(CeilDiv(op.x.columns, kTile)),
              dim3(kTile, kTile), WeightGradient, op, dweight, dbias);
    if (result != Result::kOk) return result;
  }
  const bool packed = IsPacked(op.x, 4) && IsPacked(op.dy, 4) &&
                      IsPacked(op.dx, 4) && IsPacked(op.weight);
  return Queue(launch, GridOver(op.x.rows), ThreadsFor(op.x.columns),
               NormGradientRows, op, packed);
}

// Of the forward's views.
template <typename Op>
bool IsPackedNorm(const Op& op) {
  return IsPacked(op.x, 4) && IsPacked(op.out, 4) && IsPacked(op.weight) &&
         (op.add.data == nullptr || IsPacked(op.add, 4));
}

}  // namespace

Result Cuda::Do(const Launch& launch, const RmsNorm& op) const {
  return Queue(launch, GridOver(op.x.rows), ThreadsFor(op.x.columns),
               RmsNormRows, op, IsPackedNorm(op));
}

Result Cuda::Do(const Launch& launch, const LayerNorm& op) const {
  const bool packed =
      IsPackedNorm(op) && (op.bias == nullptr || IsPacked(op.bias));
  return Queue(launch, GridOver(op.x.rows), ThreadsFor(op.x.columns),
               LayerNormRows, op, packed);
}

Result Cuda::Do(const Launch& launch, const RmsNormBackward& op) const {
  return RunGradient(
      launch,
      {op.x, op.weight, op.weight_offset, nullptr, op.rstd, op.dy, op.dx},
      op.dweight, nullptr);
}

Result Cuda::Do(const Launch& launch, const LayerNormBackward& op) const {
  return RunGradient(launch,
                     {op.x, op.weight, 0, op.mean, op.rstd, op.dy, op.dx},
                     op.dweight, op.dbias);
}

}  // namespace qlora::kernels
