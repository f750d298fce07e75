// A backend of a device for callers whose buffers are the host's: every buffer
// of an op is copied to the device and back, so that one test serves all
// backends.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/backend.h"

namespace qlora::kernels {

// A device's memory; every call ends when it is done.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // Aligned to 256 bytes; null if there is none.
  virtual char* Allocate(int64_t bytes) = 0;
  virtual void Free(char* p) = 0;
  virtual bool ToDevice(char* to, const void* from, int64_t bytes) = 0;
  // What was queued before is done.
  virtual bool ToHost(void* to, const char* from, int64_t bytes) = 0;
};

// Runs ops on `device`, which like `memory` lives on. A buffer begins where the
// host's does beside a multiple of 256, and buffers that overlap stay so. An op
// that writes beside its buffers gives kDeviceError.
std::unique_ptr<Backend> MakeStagedBackend(const Backend& device,
                                           DeviceMemory& memory);

}  // namespace qlora::kernels
