// Gated activations, dropout, embedding, conversions: elements on their own, or
// columns in the order of the rows.
#include <cmath>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/exact.cuh"

namespace qlora::kernels {
namespace {

struct ActivationValue {
  float value, slope;
};

__device__ ActivationValue Activate(Activation activation, float x) {
  constexpr float kRootHalf = 0.70710678f;
  constexpr float kDensity = 0.39894228f;
  if (activation == Activation::kGelu) {
    const float cdf = 0.5f * erfcf(-x * kRootHalf);
    return {x * cdf, cdf + x * kDensity * expf(-0.5f * x * x)};
  }
  // x * sigmoid(u(x)); 0.5 * (1 + tanh(u / 2)) is the sigmoid of u.
  float u = x, du = 1;
  if (activation == Activation::kGeluTanh) {
    u = 4 * kDensity * (x + 0.044715f * x * x * x);
    du = 4 * kDensity * (1 + 3 * 0.044715f * x * x);
  }
  const float s = __frcp_rn(1 + expf(-u));
  const float both = s * (1 - s);
  // Where the sigmoid is flat du may have become infinite on the way.
  if (both == 0 && isfinite(x)) return {x * s, s};
  return {x * s, s + x * both * du};
}

template <int N>
__global__ void __launch_bounds__(kElementThreads)
    Gate(GatedActivation op, bool packed) {
  OverElements<N>(op.out.rows, op.out.columns, packed, [&](const Span<N>& at) {
    const Pack<N> gate = at.Load(op.gate), up = at.Load(op.up);
    Pack<N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      out.v[j] = Activate(op.activation, gate.v[j]).value * up.v[j];
    }
    at.Store(out, op.out);
  });
}

template <int N>
__global__ void __launch_bounds__(kElementThreads, 3)
    GateBackward(GatedActivationBackward op, bool packed) {
  OverElements<N>(op.d.rows, op.d.columns, packed, [&](const Span<N>& at) {
    Pack<N> gate = at.Load(op.gate), up = at.Load(op.up), d = at.Load(op.d);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const ActivationValue a = Activate(op.activation, gate.v[j]);
      gate.v[j] = d.v[j] * up.v[j] * a.slope;
      const float out = a.value * up.v[j];
      up.v[j] = d.v[j] * a.value;
      d.v[j] = out;
    }
    at.Store(gate, op.gate);
    at.Store(up, op.up);
    at.Store(d, op.d);
  });
}

// Philox4x32-10: four words of a counter and a key.
__device__ uint4 Philox(uint32_t block, uint32_t module, uint64_t key) {
  uint4 c = make_uint4(block, module, 0, 0);
  auto low = static_cast<uint32_t>(key),
       high = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c.x;
    const uint64_t b = uint64_t{0xCD9E8D57} * c.z;
    c = make_uint4(
        static_cast<uint32_t>(b >> 32) ^ c.y ^ low, static_cast<uint32_t>(b),
        static_cast<uint32_t>(a >> 32) ^ c.w ^ high, static_cast<uint32_t>(a));
    low += 0x9E3779B9;
    high += 0xBB67AE85;
  }
  return c;
}

// Words below `threshold` fall out.
__global__ void __launch_bounds__(kElementThreads, 4)
    Drop(Dropout op, uint32_t threshold, float scale, bool packed) {
  OverElements<4>(op.x.rows, op.x.columns, packed, [&](const Span<4>& at) {
    const uint4 words =
        Philox(static_cast<uint32_t>(at.c / 4), op.module, op.row_keys[at.r]);
    const bool kept[4] = {words.x >= threshold, words.y >= threshold,
                          words.z >= threshold, words.w >= threshold};
    const Pack<4> x = at.Load(op.x);
    Pack<4> out = {};
    if (op.add) out = at.Load(op.out);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float value = kept[j] ? Product(x.v[j], scale) : 0.0f;
      out.v[j] = op.add ? Sum(out.v[j], value) : value;
    }
    StoreExact(out, at, op.out);
  });
}

__global__ void __launch_bounds__(kElementThreads)
    Embed(Embedding op, bool packed) {
  OverElements<4>(op.out.rows, op.out.columns, packed, [&](const Span<4>& at) {
    Pack<4> row = at.Load(op.table, op.tokens[at.r]);
#pragma unroll
    for (int j = 0; j < 4; ++j) row.v[j] = Product(row.v[j], op.scale);
    at.Store(row, op.out);
  });
}

// The block of a token's first row adds up all its rows, in order.
__global__ void __launch_bounds__(kElementThreads)
    EmbedBackward(EmbeddingBackward op) {
  __shared__ uint32_t found[kElementThreads / 32];
  const View& dx = op.dx;
  for (int64_t r = blockIdx.x; r < dx.rows; r += gridDim.x) {
    const int32_t token = op.tokens[r];
    bool earlier = false;
    for (int64_t i = threadIdx.x; i < r && !earlier; i += kElementThreads) {
      earlier = op.tokens[i] == token;
    }
    if (__syncthreads_or(earlier)) continue;
    float* sums =
        static_cast<float*>(op.dtable.data) + token * op.dtable.stride;
    const auto* rows = static_cast<const float*>(dx.data);
    for (int64_t tile = r; tile < dx.rows; tile += kElementThreads) {
      const int64_t i = tile + threadIdx.x;
      const uint32_t same =
          __ballot_sync(0xffffffffu, i < dx.rows && op.tokens[i] == token);
      if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = same;
      __syncthreads();
      for (int w = 0; w < kElementThreads / 32; ++w) {
        for (uint32_t left = found[w]; left != 0; left &= left - 1) {
          const int64_t from =
              tile + 32 * w + __ffs(static_cast<int>(left)) - 1;
          for (int64_t c = threadIdx.x; c < dx.columns; c += kElementThreads) {
            const float term = __fmul_rn(rows[from * dx.stride + c], op.scale);
            sums[c] = __fadd_rn(sums[c], term);
          }
        }
      }
      __syncthreads();
    }
  }
}

__global__ void __launch_bounds__(kElementThreads)
    Copy(Convert op, bool packed) {
  OverElements<4>(op.out.rows, op.out.columns, packed, [&](const Span<4>& at) {
    StoreExact(at.Load(op.x, op.x.rows == 1 ? 0 : at.r), at, op.out);
  });
}

__global__ void __launch_bounds__(kElementThreads) AddTo(Add op, bool packed) {
  OverElements<4>(op.x.rows, op.x.columns, packed, [&](const Span<4>& at) {
    const Pack<4> y = at.Load(op.y, op.y.rows == 1 ? 0 : at.r);
    Pack<4> x = at.Load(op.x);
#pragma unroll
    for (int j = 0; j < 4; ++j) x.v[j] = Sum(x.v[j], y.v[j]);
    at.Store(x, op.x);
  });
}

// A column a thread: the order of the rows is the result's.
__global__ void __launch_bounds__(32) SumColumns(ColumnSums op) {
  for (int64_t c = int64_t{blockIdx.x} * 32 + threadIdx.x; c < op.x.columns;
       c += int64_t{gridDim.x} * 32) {
    float sum = op.sums[c];
    for (int64_t r = 0; r < op.x.rows; ++r) {
      sum = Sum(sum, LoadOne(op.x.data, op.x.dtype, r * op.x.stride + c));
    }
    op.sums[c] = sum;
  }
}

bool ArePacked(int n, const View& a, const View& b) {
  return IsPacked(a, n) && IsPacked(b, n);
}

// 16 bytes a thread.
int PackOf(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 8; }

}  // namespace

Result Cuda::Do(const Launch& launch, const GatedActivation& op) const {
  const int n = PackOf(op.out.dtype);
  const bool packed = ArePacked(n, op.gate, op.up) && IsPacked(op.out, n);
  return Queue(launch, ElementGrid(op.out.rows, op.out.columns, n),
               kElementThreads, n == 8 ? Gate<8> : Gate<4>, op, packed);
}

Result Cuda::Do(const Launch& launch, const GatedActivationBackward& op) const {
  const int n = PackOf(op.d.dtype);
  const bool packed = ArePacked(n, op.gate, op.up) && IsPacked(op.d, n);
  return Queue(launch, ElementGrid(op.d.rows, op.d.columns, n), kElementThreads,
               n == 8 ? GateBackward<8> : GateBackward<4>, op, packed);
}

Result Cuda::Do(const Launch& launch, const Dropout& op) const {
  // Below 2^32, as the probability is below 1 by 2^-24 at least.
  const auto threshold =
      static_cast<uint32_t>(std::ceil(std::ldexp(double{op.probability}, 32)));
  return Queue(launch, ElementGrid(op.x.rows, op.x.columns, 4), kElementThreads,
               Drop, op, threshold, 1.0f / (1.0f - op.probability),
               ArePacked(4, op.x, op.out));
}

Result Cuda::Do(const Launch& launch, const Embedding& op) const {
  return Queue(launch, ElementGrid(op.out.rows, op.out.columns, 4),
               kElementThreads, Embed, op, ArePacked(4, op.table, op.out));
}

Result Cuda::Do(const Launch& launch, const EmbeddingBackward& op) const {
  return Queue(launch, GridOver(op.dx.rows), kElementThreads, EmbedBackward,
               op);
}

Result Cuda::Do(const Launch& launch, const Convert& op) const {
  return Queue(launch, ElementGrid(op.out.rows, op.out.columns, 4),
               kElementThreads, Copy, op, ArePacked(4, op.x, op.out));
}

Result Cuda::Do(const Launch& launch, const Add& op) const {
  return Queue(launch, ElementGrid(op.x.rows, op.x.columns, 4), kElementThreads,
               AddTo, op, ArePacked(4, op.x, op.y));
}

Result Cuda::Do(const Launch& launch, const ColumnSums& op) const {
  if (op.x.rows == 0) return Result::kOk;
  return Queue(launch, GridOver(CeilDiv(op.x.columns, 32)), 32, SumColumns, op);
}

}  // namespace qlora::kernels
