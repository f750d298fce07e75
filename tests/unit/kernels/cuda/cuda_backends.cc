// The CUDA backend on its device; without one the program says why and ends as
// skipped.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "tests/unit/kernels/cuda/staged_backend.h"
#include "tests/unit/kernels/tested_backends.h"

namespace qlora::kernels {
namespace {

class CudaMemory final : public DeviceMemory {
 public:
  char* Allocate(int64_t bytes) override {
    void* p = nullptr;
    return cudaMalloc(&p, bytes) == cudaSuccess ? static_cast<char*>(p)
                                                : nullptr;
  }
  void Free(char* p) override { cudaFree(p); }
  bool ToDevice(char* to, const void* from, int64_t bytes) override {
    return cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice) == cudaSuccess;
  }
  bool ToHost(void* to, const char* from, int64_t bytes) override {
    return cudaDeviceSynchronize() == cudaSuccess &&
           cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost) == cudaSuccess;
  }
};

}  // namespace

std::span<const Backend* const> TestedBackends() {
  static CudaMemory memory;
  static const auto* backend =
      CudaBackend() == nullptr
          ? nullptr
          : MakeStagedBackend(*CudaBackend(), memory).release();
  return {&backend, backend == nullptr ? size_t{0} : 1};
}

bool AreDevices() { return true; }

int CaseCount(int cases) { return cases; }

}  // namespace qlora::kernels

int main(int argc, char** argv) {
  if (qlora::kernels::CudaBackend() == nullptr) {
    const auto why = qlora::kernels::WhyNoCuda();
    std::printf("SKIPPED: %.*s\n", static_cast<int>(why.size()), why.data());
    return 77;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
