// Rotary embedding in place: a thread for the pairs of a head that it turns, or
// with norms a warp for each head.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

namespace qlora::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct Pair {
  float a, b;
};

__device__ Pair Turn(Pair p, float cos, float sin) {
  return {p.a * cos - p.b * sin, p.b * cos + p.a * sin};
}

// The heads of a row by all threads of a block, four pairs at a time: halves,
// heads, rows and tables are aligned to four elements.
__global__ void __launch_bounds__(kThreads) TurnPacks(Rotary op) {
  const int half = op.rotary_dim / 2, packs = half / 4;
  for (int64_t r = blockIdx.x; r < op.x.rows; r += gridDim.x) {
    const int64_t table = int64_t{op.position[r]} * half;
    for (int t = threadIdx.x; t < op.heads * packs; t += blockDim.x) {
      const int head = t / packs, i = t % packs * 4;
      const int64_t at = r * op.x.stride + int64_t{head} * op.dim + i;
      Pack<4> a = LoadPack<4>(op.x.data, op.x.dtype, at);
      Pack<4> b = LoadPack<4>(op.x.data, op.x.dtype, at + half);
      const Pack<4> cos = LoadPack<4>(op.cos, Dtype::kFloat32, table + i);
      const Pack<4> sin = LoadPack<4>(op.sin, Dtype::kFloat32, table + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float s = op.inverse ? -sin.v[j] : sin.v[j];
        const Pair turned = Turn({a.v[j], b.v[j]}, cos.v[j], s);
        a.v[j] = turned.a;
        b.v[j] = turned.b;
      }
      StorePack<4>(a, op.x.data, op.x.dtype, at);
      StorePack<4>(b, op.x.data, op.x.dtype, at + half);
    }
  }
}

// A head's place, and what belongs to it.
struct Head {
  int64_t at;
  const float* cos;
  const float* sin;
  const float* norm;

  __device__ Head(const Rotary& op, int64_t r, int h)
      : at(r * op.x.stride + int64_t{h} * op.dim),
        cos(op.cos + int64_t{op.position[r]} * (op.rotary_dim / 2)),
        sin(op.sin + int64_t{op.position[r]} * (op.rotary_dim / 2)),
        norm(h < op.query_heads ? op.query_norm : op.key_norm) {}
  __device__ float Weight(int i) const {
    return norm == nullptr ? 1.0f : norm[i];
  }
};

// body(r, h, lane) with all lanes of a warp, for each head of each row.
template <typename Body>
__device__ void WarpPerHead(const Rotary& op, Body body) {
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  for (int64_t w = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
       w < op.x.rows * op.heads; w += warps) {
    body(w / op.heads, static_cast<int>(w % op.heads),
         static_cast<int>(threadIdx.x % 32));
  }
}

// Each lane turns the same pairs that it reads.
__global__ void __launch_bounds__(kThreads) TurnHeads(Rotary op) {
  const View& x = op.x;
  const int half = op.rotary_dim / 2;
  WarpPerHead(op, [&](int64_t r, int h, int lane) {
    const Head head(op, r, h);
    float rstd = 1;
    if (head.norm != nullptr) {
      float squares = 0;
      for (int i = lane; i < op.dim; i += 32) {
        const float value = LoadOne(x.data, x.dtype, head.at + i);
        squares += value * value;
      }
      squares = WarpSum(squares);
      rstd = __frcp_rn(
          __fsqrt_rn(squares / static_cast<float>(op.dim) + op.norm_eps));
      if (lane == 0) op.rstd[r * op.heads + h] = rstd;
    }
    const auto normed = [&](int i) {
      return LoadOne(x.data, x.dtype, head.at + i) * rstd * head.Weight(i);
    };
    for (int i = lane; i < half; i += 32) {
      const float sin = op.inverse ? -head.sin[i] : head.sin[i];
      const Pair p = Turn({normed(i), normed(i + half)}, head.cos[i], sin);
      StoreOne(p.a, x.data, x.dtype, head.at + i);
      StoreOne(p.b, x.data, x.dtype, head.at + i + half);
    }
    if (head.norm == nullptr) return;
    for (int i = op.rotary_dim + lane; i < op.dim; i += 32) {
      StoreOne(normed(i), x.data, x.dtype, head.at + i);
    }
  });
}

// The gradient of what a head was before it turned: elements i and i + half,
// or, from rotary_dim on, i and nothing.
__device__ Pair TurnedBack(const Rotary& op, const Head& head, int i,
                           bool turns) {
  const View& x = op.x;
  const float a = LoadOne(x.data, x.dtype, head.at + i);
  if (!turns) return {a, 0};
  const int half = op.rotary_dim / 2;
  const float b = LoadOne(x.data, x.dtype, head.at + i + half);
  return Turn({a, b}, head.cos[i], -head.sin[i]);
}

// body(i, j, dy) for the pairs of a head that this lane has: its elements i and
// j with their gradients; j < 0 for an element that does not turn.
template <typename Body>
__device__ void OverPairs(const Rotary& op, const Head& head, int lane,
                          Body body) {
  const int half = op.rotary_dim / 2;
  for (int i = lane; i < half; i += 32) {
    body(i, i + half, TurnedBack(op, head, i, true));
  }
  for (int i = op.rotary_dim + lane; i < op.dim; i += 32) {
    body(i, -1, TurnedBack(op, head, i, false));
  }
}

__global__ void __launch_bounds__(kThreads)
    TurnHeadsBack(RotaryNormBackward op) {
  const Rotary& turn = op.rotary;
  const View& x = turn.x;
  WarpPerHead(turn, [&](int64_t r, int h, int lane) {
    const Head head(turn, r, h);
    const bool normed = head.norm != nullptr;
    const float rstd = normed ? turn.rstd[r * turn.heads + h] : 1.0f;
    const int64_t input = r * op.input.stride + int64_t{h} * turn.dim;
    const auto hat = [&](int i) {
      return LoadOne(op.input.data, op.input.dtype, input + i) * rstd;
    };
    float dot = 0;
    if (normed) {
      OverPairs(turn, head, lane, [&](int i, int j, Pair dy) {
        dot += dy.a * head.norm[i] * hat(i);
        if (j >= 0) dot += dy.b * head.norm[j] * hat(j);
      });
      dot = WarpSum(dot) / static_cast<float>(turn.dim);
    }
    const auto gradient = [&](int i, float dy) {
      return normed ? rstd * (dy * head.norm[i] - hat(i) * dot) : dy;
    };
    OverPairs(turn, head, lane, [&](int i, int j, Pair dy) {
      StoreOne(gradient(i, dy.a), x.data, x.dtype, head.at + i);
      if (j >= 0) StoreOne(gradient(j, dy.b), x.data, x.dtype, head.at + j);
    });
  });
}

constexpr int kTile = 32;

// dnorm[i] += sum of dy(i) * hat(i) over the rows and heads [first, last) in
// order; a block a tile of elements.
__global__ void __launch_bounds__(kTile* kTile)
    HeadNormGradient(RotaryNormBackward op, int first, int last, float* dnorm) {
  __shared__ float sums[kTile][kTile + 1];
  const Rotary& turn = op.rotary;
  const int half = turn.rotary_dim / 2;
  const int i = static_cast<int>(blockIdx.x) * kTile + threadIdx.x;
  const int heads = last - first;
  float sum = 0;
  for (int64_t w = threadIdx.y; i < turn.dim && w < turn.x.rows * heads;
       w += kTile) {
    const int64_t r = w / heads;
    const int h = first + static_cast<int>(w % heads);
    const Head head(turn, r, h);
    const bool second = i >= half && i < turn.rotary_dim;
    const Pair dy =
        TurnedBack(turn, head, second ? i - half : i, i < turn.rotary_dim);
    const float input =
        LoadOne(op.input.data, op.input.dtype,
                r * op.input.stride + int64_t{h} * turn.dim + i);
    sum += (second ? dy.b : dy.a) * input * turn.rstd[r * turn.heads + h];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= turn.dim) return;
  float total = 0;
  for (int y = 0; y < kTile; ++y) total += sums[y][threadIdx.x];
  dnorm[i] += total;
}

// The threads' indices within a row are int.
bool IsTooWide(const Rotary& op) {
  return op.heads > (1 << 20) || op.x.rows > (int64_t{1} << 40);
}

bool ArePacked(const Rotary& op) {
  return op.rotary_dim % 8 == 0 && op.dim % 4 == 0 && IsPacked(op.x, 4) &&
         IsPacked(op.cos) && IsPacked(op.sin);
}

dim3 HeadGrid(const Rotary& op) {
  return GridOver(CeilDiv(op.x.rows * op.heads, kWarps));
}

Result AddNormGradient(const Launch& launch, const RotaryNormBackward& op,
                       int first, int last, const float* norm, float* dnorm) {
  if (norm == nullptr || dnorm == nullptr || first >= last) return Result::kOk;
  return Queue(launch,
               dim3(static_cast<unsigned>(CeilDiv(op.rotary.dim, kTile))),
               dim3(kTile, kTile), HeadNormGradient, op, first, last, dnorm);
}

}  // namespace

Result Cuda::Do(const Launch& launch, const Rotary& op) const {
  if (IsTooWide(op)) return Result::kUnsupported;
  if (op.query_norm == nullptr && op.key_norm == nullptr && ArePacked(op)) {
    const int64_t packs = int64_t{op.heads} * (op.rotary_dim / 8);
    const auto threads =
        static_cast<unsigned>(32 * Least<int64_t>(CeilDiv(packs, 32), kWarps));
    return Queue(launch, GridOver(op.x.rows), threads, TurnPacks, op);
  }
  return Queue(launch, HeadGrid(op), kThreads, TurnHeads, op);
}

Result Cuda::Do(const Launch& launch, const RotaryNormBackward& op) const {
  const Rotary& turn = op.rotary;
  if (IsTooWide(turn)) return Result::kUnsupported;
  // Adding nothing to a gradient of -0 would make it 0.
  if (turn.x.rows == 0) return Result::kOk;
  const int queries = Least(turn.heads, turn.query_heads);
  const Result query =
      AddNormGradient(launch, op, 0, queries, turn.query_norm, op.dquery_norm);
  if (query != Result::kOk) return query;
  const Result key = AddNormGradient(launch, op, queries, turn.heads,
                                     turn.key_norm, op.dkey_norm);
  if (key != Result::kOk) return key;
  return Queue(launch, HeadGrid(turn), kThreads, TurnHeadsBack, op);
}

}  // namespace qlora::kernels
