// The CUDA backend's source, compiled for the processor, behind the same copies
// as on a device.
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/cuda_backend.h"
#include "tests/unit/kernels/cuda/staged_backend.h"
#include "tests/unit/kernels/tested_backends.h"

namespace qlora::kernels {

namespace {

class HostMemory final : public DeviceMemory {
 public:
  char* Allocate(int64_t bytes) override {
    return static_cast<char*>(
        std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  }
  void Free(char* p) override { std::free(p); }
  bool ToDevice(char* to, const void* from, int64_t bytes) override {
    std::memcpy(to, from, bytes);
    return true;
  }
  bool ToHost(void* to, const char* from, int64_t bytes) override {
    std::memcpy(to, from, bytes);
    return true;
  }
};

}  // namespace

std::span<const Backend* const> TestedBackends() {
  static const Cuda emulated;
  static HostMemory memory;
  static const Backend* const backends[] = {
      MakeStagedBackend(emulated, memory).release()};
  return backends;
}

bool AreDevices() { return true; }

// A coroutine for each thread takes its time, a sanitized one more.
int CaseCount(int cases) {
#ifdef __SANITIZE_ADDRESS__
  return cases / 20;
#else
  return cases;
#endif
}

}  // namespace qlora::kernels
