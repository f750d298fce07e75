// The rows kernels/cuda/*: each op's result is checked against the CPU's, then
// it is timed beside copies on the same device. Without a device the reason is
// printed and there are none.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "bench/options.h"
#include "bench/rows.h"

namespace qlora::bench {

absl::Status BenchCudaOps(const Options& options, std::vector<Row>* rows);

}  // namespace qlora::bench
