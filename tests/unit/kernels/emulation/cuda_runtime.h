// Stands in for CUDA's header of this name where the kernels' source is
// compiled for the processor: what they use of the language and the runtime.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tests/unit/kernels/emulation/simt.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __launch_bounds__(...)

using dim3 = simt::Dim;
inline const dim3& threadIdx = simt::thread_index;
inline const dim3& blockIdx = simt::block_index;
inline const dim3& blockDim = simt::block_size;
inline const dim3& gridDim = simt::grid_size;
using std::isfinite;
using std::isinf;

// As strict about alignment as a device: misaligned access is undefined here
// and UndefinedBehaviorSanitizer tells it.
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

inline float __uint_as_float(unsigned bits) {
  return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float2int_rn(float x) {
  return static_cast<int>(std::nearbyint(x));
}
inline int __ffs(int x) { return __builtin_ffs(x); }

// Where an operation is invalid a device has one NaN for all.
inline float DeviceNan(float x) {
  return x == x ? x : std::bit_cast<float>(0x7fffffffu);
}
inline float __fmul_rn(float a, float b) { return DeviceNan(a * b); }
inline float __fadd_rn(float a, float b) { return DeviceNan(a + b); }
inline float __fsub_rn(float a, float b) { return DeviceNan(a - b); }
inline float __fdiv_rn(float a, float b) { return DeviceNan(a / b); }
inline float __fsqrt_rn(float a) { return DeviceNan(std::sqrt(a)); }
inline float __frcp_rn(float a) { return DeviceNan(1 / a); }

inline void __syncthreads() { simt::MeetBlock(); }
inline int __syncthreads_or(int any) { return simt::MeetBlock(any != 0); }
inline unsigned __ballot_sync(unsigned /*mask*/, int value) {
  return simt::Ballot(value != 0);
}
template <typename T>
T __shfl_xor_sync(unsigned /*mask*/, T value, int with) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = simt::Exchange(bits, ((threadIdx.y * blockDim.x + threadIdx.x) % 32) ^
                                  static_cast<unsigned>(with));
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// Few, so that kernels stride.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                               void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  simt::RunGrid(config->gridDim, config->blockDim,
                [&] { kernel(arguments...); });
  return cudaSuccess;
}
