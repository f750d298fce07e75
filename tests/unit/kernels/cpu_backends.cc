#include "tests/unit/kernels/tested_backends.h"

namespace qlora::kernels {

std::span<const Backend* const> TestedBackends() { return CpuBackends(); }
bool AreDevices() { return false; }
int CaseCount(int cases) { return cases; }

}  // namespace qlora::kernels
