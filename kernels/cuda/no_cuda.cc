// Stands in for the CUDA backend in a build without it.
#include "kernels/backend.h"

namespace qlora::kernels {

const Backend* CudaBackend() { return nullptr; }

std::string_view WhyNoCuda() { return "built without CUDA (QLORA_CUDA=OFF)"; }

}  // namespace qlora::kernels
