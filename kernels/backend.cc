#include "kernels/backend.h"

#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {

void SerialFor(int64_t n, int64_t /*grain*/, RangeBody body) {
  if (n > 0) body(0, n);
}

const Backend& ReferenceBackend() {
  static const Reference backend;
  return backend;
}

std::span<const Backend* const> CpuBackends() {
  static const auto* backends = [] {
    auto* list = new std::vector<const Backend*>;
    for (const NamedKernelSet& set : SupportedKernels()) {
      const bool best = list->empty() && !Bf16Products().empty();
      list->push_back(new CpuBackend(set.name, *set.kernels,
                                     QuantizeKernelsFor(set.name),
                                     best ? Bf16Products().front() : nullptr));
    }
    return list;
  }();
  return *backends;
}

}  // namespace qlora::kernels
