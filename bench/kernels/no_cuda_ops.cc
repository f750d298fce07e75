// Stands in for cuda_ops.cc in a build without CUDA.
#include <iostream>

#include "bench/kernels/cuda_rows.h"
#include "kernels/backend.h"

namespace qlora::bench {

absl::Status BenchCudaOps(const Options& options, std::vector<Row>* /*rows*/) {
  if (options.Wants("kernels/cuda/")) {
    std::cout << "kernels/cuda/* skipped: " << kernels::WhyNoCuda() << "\n";
  }
  return absl::OkStatus();
}

}  // namespace qlora::bench
