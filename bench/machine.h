// What this machine allows, measured: the limits that rows are a share of.
#pragma once

#include <functional>

#include "kernels/types.h"

namespace qlora::bench {

// The fastest of at least five runs that take half a second together; the
// first, which warms up, does not count.
double BestSeconds(const std::function<void()>& run);

// The best of several products of 2048 x 2048 matrices by the library that the
// trainer uses, FLOP/s.
double GemmRate(kernels::Dtype dtype, int threads);

// Bytes read and written per second by the best of several copies between
// buffers far larger than the caches, with cached and with streaming stores.
double CopyBandwidth(int threads);

}  // namespace qlora::bench
