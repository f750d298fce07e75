// Quantization, a warp for each block; byte for byte what the reference writes.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/exact.cuh"

namespace qlora::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// body(block, lane) with all lanes of a warp, for each of `blocks`.
template <typename Body>
__device__ void WarpPerBlock(int64_t blocks, Body body) {
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  for (int64_t b = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; b < blocks;
       b += warps) {
    body(b, static_cast<int>(threadIdx.x % 32));
  }
}

dim3 WarpGrid(int64_t blocks) { return GridOver(CeilDiv(blocks, kWarps)); }

// The largest magnitude of value(0), value(1), ..., which a NaN is not.
template <typename Value>
__device__ float WarpAbsMax(int64_t n, int lane, Value value) {
  float largest = 0;
  for (int64_t i = lane; i < n; i += 32) {
    largest = LargerMagnitude(largest, value(i));
  }
  return WarpMax(largest);
}

// Codes of one block of a map; returns the scale.
template <typename Value>
__device__ float QuantizeMapBlock(const float* map, int64_t n, int lane,
                                  Value value, uint8_t* codes) {
  const float scale = WarpAbsMax(n, lane, value);
  const float reciprocal = __fdiv_rn(1.0f, scale);
  for (int64_t i = lane; i < n; i += 32) {
    codes[i] = NearestDynamic(map, __fmul_rn(value(i), reciprocal));
  }
  return scale;
}

__global__ void __launch_bounds__(kThreads)
    QuantizeFourBit(Quantize op, float* absmax) {
  const BlockwiseShape shape = op.shape;
  WarpPerBlock(shape.num_blocks(), [&](int64_t b, int lane) {
    const int64_t begin = b * shape.block_size;
    const int64_t n =
        Least<int64_t>(shape.block_size, shape.num_elements - begin);
    const auto value = [&](int64_t i) {
      return LoadOne(op.x, op.dtype, begin + i);
    };
    const float scale = WarpAbsMax(n, lane, value);
    const float reciprocal = __fdiv_rn(1.0f, scale);
    if (lane == 0) absmax[b] = scale;
    // The element after an odd end counts as 0.
    for (int64_t i = 2 * lane; i < n; i += 64) {
      const float second = i + 1 < n ? value(i + 1) : 0.0f;
      const uint32_t high =
          FourBitCode(op.type, __fmul_rn(value(i), reciprocal));
      const uint32_t low = FourBitCode(op.type, __fmul_rn(second, reciprocal));
      op.codes[(begin + i) / 2] = static_cast<uint8_t>(high << 4 | low);
    }
  });
}

// One block; one thread adds, in order, what the others fetch.
__global__ void __launch_bounds__(kThreads)
    MeanOfScales(const float* absmax, int64_t blocks, float* offset) {
  constexpr int kTile = 4 * kThreads;
  __shared__ float tile[kTile];
  double sum = 0;
  for (int64_t begin = 0; begin < blocks; begin += kTile) {
    const auto n = static_cast<int>(Least<int64_t>(kTile, blocks - begin));
    for (int i = threadIdx.x; i < n; i += kThreads) tile[i] = absmax[begin + i];
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 0; i < n; ++i) sum += tile[i];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    *offset =
        blocks == 0 ? 0 : static_cast<float>(sum / static_cast<double>(blocks));
  }
}

__global__ void __launch_bounds__(kThreads)
    NestScales(const float* absmax, int64_t blocks, MutableScales scales) {
  __shared__ float map[256];
  LoadMap(DynamicMap::kSigned, map);
  const float offset = *scales.offset;
  WarpPerBlock(CeilDiv(blocks, kNestedBlockSize), [&](int64_t b, int lane) {
    const int64_t begin = b * kNestedBlockSize;
    const float scale = QuantizeMapBlock(
        map, Least<int64_t>(kNestedBlockSize, blocks - begin), lane,
        [&](int64_t i) { return __fsub_rn(absmax[begin + i], offset); },
        scales.absmax_codes + begin);
    if (lane == 0) scales.absmax_scale[b] = scale;
  });
}

__global__ void __launch_bounds__(kThreads) QuantizeMap(QuantizeDynamic op) {
  __shared__ float map[256];
  LoadMap(op.map, map);
  const BlockwiseShape shape = op.shape;
  WarpPerBlock(shape.num_blocks(), [&](int64_t b, int lane) {
    const int64_t begin = b * shape.block_size;
    const float scale = QuantizeMapBlock(
        map, Least<int64_t>(shape.block_size, shape.num_elements - begin), lane,
        [&](int64_t i) { return op.x[begin + i]; }, op.codes + begin);
    if (lane == 0) op.scale[b] = scale;
  });
}

__global__ void __launch_bounds__(kThreads) QuantizeInt8(QuantizeInt8Rows op) {
  const View& x = op.x;
  for (int64_t r = blockIdx.x; r < x.rows; r += gridDim.x) {
    const auto element = [&](int64_t c) {
      const float value = LoadOne(x.data, x.dtype, r * x.stride + c);
      return __half2float(__float2half_rn(value));
    };
    float largest = 0;
    for (int64_t c = threadIdx.x; c < x.columns; c += kThreads) {
      largest = LargerMagnitude(largest, element(c));
    }
    const float scale = BlockMax(largest);
    const float factor = __fdiv_rn(127.0f, scale);
    if (threadIdx.x == 0) op.scale[r] = scale;
    for (int64_t c = threadIdx.x; c < x.columns; c += kThreads) {
      const float product = __fmul_rn(element(c), factor);
      op.codes[r * x.columns + c] =
          product == product ? static_cast<int8_t>(__float2int_rn(product)) : 0;
    }
  }
}

}  // namespace

int64_t Cuda::Room(const Quantize& op, int /*threads*/) const {
  return op.scales.absmax == nullptr ? op.shape.num_blocks() * 4 : 0;
}

Result Cuda::Do(const Launch& launch, const Quantize& op) const {
  const int64_t blocks = op.shape.num_blocks();
  const bool nested = op.scales.absmax == nullptr;
  float* absmax =
      nested ? static_cast<float*>(launch.workspace) : op.scales.absmax;
  const Result quantized =
      Queue(launch, WarpGrid(blocks), kThreads, QuantizeFourBit, op, absmax);
  if (quantized != Result::kOk || !nested) return quantized;
  const Result mean = Queue(launch, 1, kThreads, MeanOfScales, absmax, blocks,
                            op.scales.offset);
  if (mean != Result::kOk) return mean;
  return Queue(launch, WarpGrid(CeilDiv(blocks, kNestedBlockSize)), kThreads,
               NestScales, absmax, blocks, op.scales);
}

Result Cuda::Do(const Launch& launch, const QuantizeInt8Rows& op) const {
  return Queue(launch, GridOver(op.x.rows), kThreads, QuantizeInt8, op);
}

Result Cuda::Do(const Launch& launch, const QuantizeDynamic& op) const {
  return Queue(launch, WarpGrid(op.shape.num_blocks()), kThreads, QuantizeMap,
               op);
}

}  // namespace qlora::kernels
