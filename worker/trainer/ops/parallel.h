// The process's one thread pool, LibTorch's.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "kernels/types.h"

namespace qlora::trainer {

int NumThreads();

// body(begin, end) over disjoint ranges that cover [0, n), each at least
// `grain` long, on the pool and this thread; returns when all are done.
void Parallel(int64_t n, int64_t grain,
              absl::FunctionRef<void(int64_t begin, int64_t end)> body);

// The same pool for the kernel library; no workspace.
const kernels::ParallelFor& KernelParallelFor();
kernels::Launch KernelLaunch();

}  // namespace qlora::trainer
