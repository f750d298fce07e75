#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {

Result Reference::Do(const Launch& /*launch*/, const AdamW& /*op*/) const {
  return Result::kUnsupported;
}

Result Reference::Do(const Launch& /*launch*/,
                     const SumOfSquares& /*op*/) const {
  return Result::kUnsupported;
}

int64_t Reference::Room(const AdamW& /*op*/, int /*threads*/) const {
  return 0;
}

int64_t Reference::Room(const SumOfSquares& /*op*/, int /*threads*/) const {
  return 0;
}

}  // namespace qlora::kernels
