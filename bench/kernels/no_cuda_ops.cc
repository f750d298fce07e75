// Stands in for cuda_ops.cc in a build without CUDA, where there is no device.
#include "bench/kernels/cuda_rows.h"

namespace qlora::bench {

std::string CudaDeviceName() { return ""; }

absl::Status BenchCudaOps(const Options& /*options*/,
                          std::vector<Row>* /*rows*/) {
  return absl::OkStatus();
}

}  // namespace qlora::bench
