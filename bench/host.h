// Where a run took place, for its record.
#pragma once

#include <string>

namespace qlora::bench {

// The machine in words: processor, vCPUs, memory, which of the instruction sets
// that kernels are chosen by it has, system, and CUDA device. "AMD EPYC family
// 25 model 17, 2 vCPU, 24 GiB, avx2, avx512f, avx512vbmi, avx512_bf16, no
// amx_bf16, Debian GNU/Linux 12 (bookworm), no CUDA device"
std::string DescribeHost();

}  // namespace qlora::bench
