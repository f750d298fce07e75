// The way from the trainer to the kernel library.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "kernels/backend.h"

namespace qlora::trainer {

// Where everything runs: the processor's fastest instruction set.
inline const kernels::Backend& KernelBackend() {
  return *kernels::CpuBackends().front();
}

// The arguments are the trainer's own, so an op that refuses them is a defect:
// ends the process.
template <typename Op>
void RunOp(const kernels::Launch& launch, const Op& op) {
  const kernels::Result result = KernelBackend().Run(launch, op);
  if (result == kernels::Result::kOk) return;
  std::fprintf(stderr, "%s: kernel result %d\n", __PRETTY_FUNCTION__,
               static_cast<int>(result));
  std::abort();
}

}  // namespace qlora::trainer
