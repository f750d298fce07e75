#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {

Result Reference::Do(const Launch& /*launch*/, const Attention& /*op*/) const {
  return Result::kUnsupported;
}

Result Reference::Do(const Launch& /*launch*/,
                     const AttentionBackward& /*op*/) const {
  return Result::kUnsupported;
}

int64_t Reference::Room(const Attention& /*op*/, int /*threads*/) const {
  return 0;
}

int64_t Reference::Room(const AttentionBackward& /*op*/,
                        int /*threads*/) const {
  return 0;
}

}  // namespace qlora::kernels
