// Each op of the kernel library on large buffers: its result is checked, then
// it is timed beside a peer's operation in the same process or run.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/options.h"
#include "bench/rows.h"

namespace qlora::bench {

// `skipped`: the names of rows that this machine cannot have, with the reason.
absl::Status AddKernelRows(const Options& options, std::vector<Row>* rows,
                           std::vector<std::string>* skipped);

}  // namespace qlora::bench
