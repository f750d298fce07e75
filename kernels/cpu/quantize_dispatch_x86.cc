#include "kernels/cpu/quantize_kernels.h"

namespace qlora::kernels {

const QuantizeKernels& QuantizeKernelsFor(std::string_view name) {
  if (name == "avx512") return kQuantizeAvx512;
  return name == "avx2" ? kQuantizeAvx2 : kQuantizeBaseline;
}

}  // namespace qlora::kernels
