// What this process runs on. Call from any thread.
#pragma once

#include <cstdint>
#include <string_view>

namespace qlora::trainer {

// Compute threads of the one pool; before anything is computed.
void SetThreads(int threads);

// Whether bfloat16 products are faster than float32's here (x86 with AMX).
bool HasFastBfloat16();

// "2.11.0".
std::string_view TorchVersion();

// The largest resident set that this process had so far, bytes.
int64_t PeakMemoryBytes();

}  // namespace qlora::trainer
