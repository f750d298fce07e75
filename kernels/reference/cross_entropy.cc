#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {

Result Reference::Do(const Launch& /*launch*/,
                     const CrossEntropy& /*op*/) const {
  return Result::kUnsupported;
}

}  // namespace qlora::kernels
