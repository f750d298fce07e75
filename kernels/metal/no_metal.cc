// Stands where a backend for Metal would: a class like cuda/'s, compiled in
// place of this file.
#include "kernels/backend.h"

namespace qlora::kernels {

const Backend* MetalBackend() { return nullptr; }

std::string_view WhyNoMetal() { return "built without Metal: no backend yet"; }

}  // namespace qlora::kernels
