#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/row_split.h"

namespace qlora::kernels {

Result CpuBackend::Do(const Launch& launch, const CrossEntropy& op) const {
  return WithKernels(rows_, op.logits.dtype, [&](const auto& k, auto t) {
    using T = decltype(t);
    ForRows(launch, op.logits, [&](int64_t r) {
      T* row = op.logits.row<T>(r);
      if (op.targets[r] >= 0) {
        op.loss[r] = k.cross_entropy(row, op.logits.columns, op.targets[r],
                                     op.options, op.backward);
        return;
      }
      op.loss[r] = 0;
      if (op.backward) std::memset(row, 0, op.logits.columns * sizeof(T));
    });
  });
}

}  // namespace qlora::kernels
