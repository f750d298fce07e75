#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <string>

namespace qlora::kernels {
namespace {

constexpr int kLeastMajor = 8;

// The compute capability of the current device.
cudaError_t FindMajor(int* major) {
  int count = 0, device = 0;
  cudaError_t result = cudaGetDeviceCount(&count);
  if (result == cudaSuccess && count == 0) result = cudaErrorNoDevice;
  if (result == cudaSuccess) result = cudaGetDevice(&device);
  if (result != cudaSuccess) return result;
  return cudaDeviceGetAttribute(major, cudaDevAttrComputeCapabilityMajor,
                                device);
}

// Empty if the current device can run the kernels.
std::string FindFault() {
  int major = 0;
  const cudaError_t result = FindMajor(&major);
  if (result != cudaSuccess) {
    // Else the caller would find it as the last error of a call of its own.
    cudaGetLastError();
    return std::string("no CUDA device: ") + cudaGetErrorString(result);
  }
  if (major < kLeastMajor) {
    return "the CUDA device has compute capability " + std::to_string(major) +
           ".x, below 8.0";
  }
  return "";
}

const std::string& Fault() {
  static const auto* fault = new std::string(FindFault());
  return *fault;
}

}  // namespace

const Backend* CudaBackend() {
  static const Cuda backend;
  return Fault().empty() ? &backend : nullptr;
}

std::string_view WhyNoCuda() { return Fault(); }

}  // namespace qlora::kernels
