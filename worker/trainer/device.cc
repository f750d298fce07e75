#include "worker/trainer/device.h"

#include <fstream>
#include <limits>
#include <string>

#include "ATen/Parallel.h"
#include "ATen/cpu/Utils.h"
#include "torch/headeronly/version.h"

namespace qlora::trainer {

void SetThreads(int threads) {
  if (threads > 0) at::set_num_threads(threads);
}

bool HasFastBfloat16() {
  const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto it = capabilities.find("amx_bf16");
  return it != capabilities.end() && it->second.isBool() && it->second.toBool();
}

std::string_view TorchVersion() { return TORCH_VERSION; }

int64_t PeakMemoryBytes() {
  // Not getrusage: its figure includes the process before exec.
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    int64_t kibibytes = 0;
    if (word == "VmHWM:" && status >> kibibytes) return kibibytes * 1024;
    status.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

}  // namespace qlora::trainer
