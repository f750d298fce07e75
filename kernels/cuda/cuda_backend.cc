#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <string>

namespace qlora::kernels {
namespace {

constexpr int kLeastMajor = 8;

// Empty if the current device can run the kernels.
std::string FindFault() {
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess) {
    return std::string("no CUDA device: ") + cudaGetErrorString(counted);
  }
  int device = 0, major = 0;
  const cudaError_t asked =
      count == 0 ? cudaErrorNoDevice : cudaGetDevice(&device);
  const cudaError_t told =
      asked != cudaSuccess
          ? asked
          : cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                   device);
  if (told != cudaSuccess) {
    return std::string("no CUDA device: ") + cudaGetErrorString(told);
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
