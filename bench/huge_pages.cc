#include "bench/huge_pages.h"

#include <memory>

#include "ATen/ops/from_blob.h"
#include "worker/trainer/parallel/aligned_buffer.h"

namespace qlora::bench {

at::Tensor InHugePages(const at::Tensor& x) {
  const auto buffer = std::make_shared<trainer::AlignedBuffer>(
      trainer::AlignedBuffer::Create(static_cast<int64_t>(x.nbytes()),
                                     "a tensor")
          .value());
  at::Tensor copy = at::from_blob(
      buffer->bytes().data(), x.sizes(), [buffer](void*) {}, x.options());
  return copy.copy_(x);
}

}  // namespace qlora::bench
