// What the kernels share: launching, elements of any type, sums over threads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/types.h"

namespace qlora::kernels {

// Queues a kernel; a grid without blocks is nothing to do.
template <typename... Parameters, typename... Arguments>
Result Queue(const Launch& launch, dim3 grid, dim3 block,
             void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0) return Result::kOk;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(launch.stream);
  if (cudaLaunchKernelEx(&config, kernel, arguments...) == cudaSuccess) {
    return Result::kOk;
  }
  // Else the caller would find it as the last error of a call of its own.
  cudaGetLastError();
  return Result::kDeviceError;
}

// Blocks that keep the current device busy; kernels stride over what is left.
inline int64_t ManyBlocks() {
  int device = 0, processors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return processors > 0 ? int64_t{processors} * 16 : 1;
}

template <typename T>
__host__ __device__ constexpr T Least(T a, T b) {
  return a < b ? a : b;
}

__host__ __device__ constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// One block a piece of work, as many as there is room for.
inline dim3 GridOver(int64_t pieces) {
  return dim3(static_cast<unsigned>(Least(pieces, ManyBlocks())));
}

// A block's threads for rows of `columns` elements, four a thread.
inline dim3 ThreadsFor(int64_t columns) {
  const int64_t warps = CeilDiv(columns, 128);
  return dim3(static_cast<unsigned>(32 * Least<int64_t>(warps, 16)));
}

template <int N>
struct Pack {
  float v[N];
};

__device__ inline float FromBf16(uint32_t bits) {
  return __uint_as_float(bits << 16);
}

// A NaN keeps its bits; the device's conversion has one NaN for all.
__device__ inline float FromFp16(uint32_t bits) {
  if ((bits & 0x7fffu) > 0x7c00u) {
    return __uint_as_float((bits & 0x8000u) << 16 | 0x7f800000u |
                           (bits & 0x3ffu) << 13);
  }
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

__device__ inline float FromHalf(uint32_t bits, Dtype dtype) {
  return dtype == Dtype::kBfloat16 ? FromBf16(bits) : FromFp16(bits);
}

__device__ inline uint16_t ToHalf(float value, Dtype dtype) {
  return dtype == Dtype::kBfloat16
             ? __bfloat16_as_ushort(__float2bfloat16_rn(value))
             : __half_as_ushort(__float2half_rn(value));
}

// Two elements in a word, the first in its lower half.
__device__ inline uint32_t ToHalves(float a, float b, Dtype dtype) {
  return ToHalf(a, dtype) | uint32_t{ToHalf(b, dtype)} << 16;
}

__device__ inline float LoadOne(const void* data, Dtype dtype, int64_t i) {
  return dtype == Dtype::kFloat32
             ? static_cast<const float*>(data)[i]
             : FromHalf(static_cast<const uint16_t*>(data)[i], dtype);
}

__device__ inline void StoreOne(float value, void* data, Dtype dtype,
                                int64_t i) {
  if (dtype == Dtype::kFloat32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<uint16_t*>(data)[i] = ToHalf(value, dtype);
  }
}

// N is 4 or 8; element i is aligned to N elements. In steps of four, so that
// float32 moves 16 bytes at a time and the narrow types 8 or 16.
template <int N>
__device__ Pack<N> LoadPack(const void* data, Dtype dtype, int64_t i) {
  Pack<N> pack;
  if (dtype == Dtype::kFloat32) {
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      const auto* at = static_cast<const float*>(data) + i + j;
      const float4 four = *reinterpret_cast<const float4*>(at);
      pack.v[j] = four.x;
      pack.v[j + 1] = four.y;
      pack.v[j + 2] = four.z;
      pack.v[j + 3] = four.w;
    }
    return pack;
  }
  const auto* at = static_cast<const uint16_t*>(data) + i;
  uint32_t words[N / 2];
  if constexpr (N == 8) {
    const uint4 four = *reinterpret_cast<const uint4*>(at);
    words[0] = four.x;
    words[1] = four.y;
    words[2] = four.z;
    words[3] = four.w;
  } else {
    const uint2 two = *reinterpret_cast<const uint2*>(at);
    words[0] = two.x;
    words[1] = two.y;
  }
#pragma unroll
  for (int j = 0; j < N; ++j) {
    pack.v[j] = FromHalf(words[j / 2] >> (j % 2 * 16) & 0xffff, dtype);
  }
  return pack;
}

template <int N>
__device__ void StorePack(const Pack<N>& pack, void* data, Dtype dtype,
                          int64_t i) {
  if (dtype == Dtype::kFloat32) {
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      auto* at = static_cast<float*>(data) + i + j;
      *reinterpret_cast<float4*>(at) =
          make_float4(pack.v[j], pack.v[j + 1], pack.v[j + 2], pack.v[j + 3]);
    }
    return;
  }
  auto* at = static_cast<uint16_t*>(data) + i;
  uint32_t words[N / 2];
#pragma unroll
  for (int j = 0; j < N / 2; ++j) {
    words[j] = ToHalves(pack.v[2 * j], pack.v[2 * j + 1], dtype);
  }
  if constexpr (N == 8) {
    *reinterpret_cast<uint4*>(at) =
        make_uint4(words[0], words[1], words[2], words[3]);
  } else {
    *reinterpret_cast<uint2*>(at) = make_uint2(words[0], words[1]);
  }
}

// Packs of a view may be moved whole.
inline bool IsPacked(const View& v, int n) {
  const auto bytes = static_cast<uintptr_t>(n * ElementSize(v.dtype));
  return reinterpret_cast<uintptr_t>(v.data) % bytes == 0 &&
         (v.stride % n == 0 || v.rows <= 1);
}

inline bool IsPacked(const float* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// A place in rows: N elements from (r, c) on, or fewer at a row's end.
template <int N>
struct Span {
  int64_t r, c;
  int count;
  bool packed;

  __device__ Span(int64_t row, int64_t column, int64_t columns, bool pack)
      : r(row),
        c(column),
        count(static_cast<int>(Least<int64_t>(N, columns - column))),
        packed(pack && count == N) {}

  __device__ Pack<N> Load(const View& v, int64_t row) const {
    const int64_t i = row * v.stride + c;
    if constexpr (N > 1) {
      if (packed) return LoadPack<N>(v.data, v.dtype, i);
    }
    Pack<N> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      pack.v[j] = j < count ? LoadOne(v.data, v.dtype, i + j) : 0.0f;
    }
    return pack;
  }
  __device__ Pack<N> Load(const View& v) const { return Load(v, r); }
  // Of a vector as long as a row.
  __device__ Pack<N> Load(const float* p) const {
    if constexpr (N > 1) {
      if (packed) return LoadPack<N>(p, Dtype::kFloat32, c);
    }
    Pack<N> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = j < count ? p[c + j] : 0.0f;
    return pack;
  }
  __device__ void Store(const Pack<N>& pack, const View& v, int64_t row) const {
    const int64_t i = row * v.stride + c;
    if constexpr (N > 1) {
      if (packed) return StorePack<N>(pack, v.data, v.dtype, i);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j < count) StoreOne(pack.v[j], v.data, v.dtype, i + j);
    }
  }
  __device__ void Store(const Pack<N>& pack, const View& v) const {
    Store(pack, v, r);
  }
};

// The block's threads over one row: body(span).
template <int N, typename Body>
__device__ void OverRow(int64_t r, int64_t columns, bool packed, Body body) {
  for (int64_t c = int64_t{threadIdx.x} * N; c < columns;
       c += int64_t{blockDim.x} * N) {
    body(Span<N>(r, c, columns, packed));
  }
}

// The grid's threads over all elements, x along the rows and y across.
template <int N, typename Body>
__device__ void OverElements(int64_t rows, int64_t columns, bool packed,
                             Body body) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x * N;
  const int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    for (int64_t c = first; c < columns; c += step) {
      body(Span<N>(r, c, columns, packed));
    }
  }
}

inline constexpr int kElementThreads = 256;

// A grid of `pieces` along each of `rows`, or what keeps the device busy.
inline dim3 RowGrid(int64_t rows, int64_t pieces) {
  const int64_t most = ManyBlocks();
  const int64_t x = Least(pieces, most);
  if (x == 0) return dim3(0);
  const int64_t y = Least<int64_t>(Least(rows, CeilDiv(most, x)), 65535);
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

// The grid for OverElements<n>.
inline dim3 ElementGrid(int64_t rows, int64_t columns, int n) {
  return RowGrid(rows, CeilDiv(columns, int64_t{kElementThreads} * n));
}

// Over a warp, the same in all its lanes.
template <typename T>
__device__ T WarpSum(T value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, mask);
  }
  return value;
}

__device__ inline float WarpMax(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, mask));
  }
  return value;
}

// Over a block of whole warps, all of whose threads call it.
template <typename T>
__device__ T BlockSum(T value) {
  __shared__ T sums[32];
  value = WarpSum(value);
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = WarpSum(lane < blockDim.x / 32 ? sums[lane] : T{0});
  // The next call writes them.
  __syncthreads();
  return value;
}

__device__ inline float BlockMax(float value) {
  __shared__ float maxima[32];
  value = WarpMax(value);
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) maxima[threadIdx.x / 32] = value;
  __syncthreads();
  value = WarpMax(maxima[lane < blockDim.x / 32 ? lane : 0]);
  __syncthreads();
  return value;
}

}  // namespace qlora::kernels
