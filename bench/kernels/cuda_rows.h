// The rows kernels/cuda/*: each op's result is checked against the CPU's, then
// it is timed beside copies on the same device, and dequantization beside
// bitsandbytes' three launches, if options.cuda_python has CUDA.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/options.h"
#include "bench/rows.h"

namespace qlora::bench {

// What they are called, with or without CUDA.
inline constexpr const char* kCudaRows[] = {
    "kernels/cuda/nf4_dequantize_nested_4096",
    "kernels/cuda/nf4_dequantize_nested_8192",
    "kernels/cuda/rms_norm",
    "kernels/cuda/gated_activation",
    "kernels/cuda/rotary",
    "kernels/cuda/adamw"};

// Of the device that CudaBackend() runs on; empty without one.
std::string CudaDeviceName();

// Those that the options want; there must be a device.
absl::Status BenchCudaOps(const Options& options, std::vector<Row>* rows);

}  // namespace qlora::bench
