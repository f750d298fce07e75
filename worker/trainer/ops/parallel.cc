#include "worker/trainer/ops/parallel.h"

#include <ATen/Parallel.h>

namespace qlora::trainer {

int NumThreads() { return at::get_num_threads(); }

void Parallel(int64_t n, int64_t grain,
              absl::FunctionRef<void(int64_t, int64_t)> body) {
  at::parallel_for(0, n, grain, body);
}

const kernels::ParallelFor& KernelParallelFor() {
  static const kernels::ParallelFor parallel_for = [](int64_t n, int64_t grain,
                                                      kernels::RangeBody body) {
    at::parallel_for(0, n, grain, body);
  };
  return parallel_for;
}

kernels::Launch KernelLaunch() {
  return {.parallel_for = KernelParallelFor(), .threads = NumThreads()};
}

}  // namespace qlora::trainer
