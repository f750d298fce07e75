// Arithmetic that gives the reference's bytes: separately rounded multiply and
// add, NaNs as the reference's processors make them, and the codes.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"
#include "kernels/quant_format.h"
#include "kernels/quant_tables.h"

namespace qlora::kernels {

// A NaN operand, the first one, made quiet; or the NaN of an invalid operation.
__device__ inline float NanOf(float a, float b) {
  const float operand = a != a ? a : b;
  return __uint_as_float(
      operand != operand ? __float_as_uint(operand) | 0x400000u : 0xffc00000u);
}

__device__ inline float Product(float a, float b) {
  const float value = __fmul_rn(a, b);
  return value == value ? value : NanOf(a, b);
}

__device__ inline float Sum(float a, float b) {
  const float value = __fadd_rn(a, b);
  return value == value ? value : NanOf(a, b);
}

// The larger; a NaN does not count.
__device__ inline float LargerMagnitude(float largest, float value) {
  return fabsf(value) > largest ? fabsf(value) : largest;
}

// As StoreOne, with the reference's NaNs.
__device__ inline void StoreExact(float value, void* data, Dtype dtype,
                                  int64_t i) {
  const uint32_t bits = __float_as_uint(value);
  if (value == value || dtype == Dtype::kFloat32) {
    StoreOne(value, data, dtype, i);
  } else {
    static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(
        dtype == Dtype::kBfloat16 ? bits >> 16 | 0x40u
                                  : (bits >> 16 & 0x8000u) | 0x7e00u);
  }
}

// As at.Store, with the reference's NaNs.
template <int N>
__device__ void StoreExact(const Pack<N>& pack, const Span<N>& at,
                           const View& v) {
  bool has_nan = false;
#pragma unroll
  for (int j = 0; j < N; ++j) has_nan |= pack.v[j] != pack.v[j];
  if (!has_nan) return at.Store(pack, v);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j < at.count) {
      StoreExact(pack.v[j], v.data, v.dtype, at.r * v.stride + at.c + j);
    }
  }
}

// The maps where all threads of the device can read them.
static __device__ const Table<256> kDeviceSignedMap = SignedMap();
static __device__ const Table<256> kDeviceUnsignedMap = UnsignedMap();

// Copies a map to shared memory; all threads of the block call it.
__device__ inline void LoadMap(DynamicMap map, float* shared) {
  for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) {
    shared[i] = map == DynamicMap::kSigned ? kDeviceSignedMap.values[i]
                                           : kDeviceUnsignedMap.values[i];
  }
  __syncthreads();
}

// The nearest value of the map. On a midpoint the value where the halving
// search ended wins.
__device__ inline uint8_t NearestDynamic(const float* map, float x) {
  int pivot = 127, low = 0, high = 255;
#pragma unroll
  for (int step = 64; step > 0; step /= 2) {
    if (x > map[pivot]) {
      low = pivot;
      pivot += step;
    } else {
      high = pivot;
      pivot -= step;
    }
  }
  int nearest = pivot;
  if (x > map[pivot]) {
    if (x > (map[high] + map[pivot]) * 0.5f) nearest = high;
  } else if (x < (map[low] + map[pivot]) * 0.5f) {
    nearest = low;
  }
  return static_cast<uint8_t>(nearest);
}

// Read at places that are known when compiling.
static __constant__ const Table<15> kDeviceNf4Thresholds = kNf4ThresholdTable;
static __constant__ const Table<7> kDeviceFp4Thresholds = kFp4ThresholdTable;

// The code of a 4-bit type for a scaled element; the number of thresholds that
// it is above, which for a NaN is none.
__device__ inline uint32_t FourBitCode(FourBitType type, float x) {
  uint32_t rank = 0;
  if (type == FourBitType::kNf4) {
#pragma unroll
    for (int i = 0; i < 15; ++i) rank += x > kDeviceNf4Thresholds.values[i];
    return rank;
  }
#pragma unroll
  for (int i = 0; i < 7; ++i) {
    rank += fabsf(x) > kDeviceFp4Thresholds.values[i];
  }
  // Codes by rank, a nibble each.
  return (0x32547610u >> (4 * rank) & 15u) | (x < 0 ? 8u : 0u);
}

}  // namespace qlora::kernels
