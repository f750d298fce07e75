#include "kernels/backend.h"

#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {

const Backend& ReferenceBackend() {
  static const Reference backend;
  return backend;
}

std::span<const Backend* const> CpuBackends() {
  static const auto* backends = [] {
    auto* list = new std::vector<const Backend*>;
    for (const NamedKernelSet& set : SupportedKernels()) {
      const Nf4Kernels* nf4 = &kNf4Reference;
      for (const Nf4Kernels* kernels : Nf4Available()) {
        if (kernels->name == std::string_view(set.name)) nf4 = kernels;
      }
      list->push_back(new CpuBackend(set.name, *set.kernels, *nf4));
    }
    return list;
  }();
  return *backends;
}

const Backend* CudaBackend() { return nullptr; }

}  // namespace qlora::kernels
