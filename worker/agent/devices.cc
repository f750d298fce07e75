#include "worker/agent/devices.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace qlora::agent {
namespace {

constexpr int kMaxDevices = 256;

std::vector<int> AllowedCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return {0};
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

// The value of the first "key : value" line.
std::string CpuInfo(const MachineFiles& files, std::string_view key) {
  std::ifstream in(files.proc + "/cpuinfo");
  std::string line;
  while (std::getline(in, line)) {
    const size_t colon = line.find(": ");
    if (line.rfind(key, 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "";
}

int64_t PhysicalMemory(const MachineFiles& files) {
  std::ifstream in(files.proc + "/meminfo");
  std::string key;
  std::string unit;
  int64_t kib = 0;
  while (in >> key >> kib) {
    std::getline(in, unit);
    if (key == "MemTotal:") return kib * 1024;
  }
  return 0;
}

// The smallest limit from `group` up to the root of the hierarchy.
int64_t LimitAlong(const std::string& root, std::string group,
                   const std::string& file, int64_t memory) {
  while (true) {
    std::ifstream in(root + group + "/" + file);
    int64_t limit = 0;
    // "max" is no number.
    if (in >> limit && limit > 0) memory = std::min(memory, limit);
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos) return memory;
    group.resize(slash);
  }
}

int64_t UsableMemory(const MachineFiles& files) {
  int64_t memory = PhysicalMemory(files);
  std::ifstream in(files.proc + "/self/cgroup");
  std::string line;
  // hierarchy:controllers:path
  while (std::getline(in, line)) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      memory = LimitAlong(files.cgroup, path, "memory.max", memory);
    } else if (controllers == "memory") {
      memory = LimitAlong(files.cgroup + "/memory", path,
                          "memory.limit_in_bytes", memory);
    }
  }
  return memory;
}

absl::StatusOr<int> CpuRanks(std::string_view spec) {
  if (spec == "auto") return 1;
  int count = 0;
  if (spec.rfind("cpu=", 0) == 0 &&
      absl::SimpleAtoi(std::string(spec.substr(4)), &count) && count >= 1 &&
      count <= kMaxDevices) {
    return count;
  }
  const std::string text(spec);
  if (text.rfind("cuda", 0) == 0 || text.rfind("mps", 0) == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--devices ", text, ": this build has no support for ",
                     text.substr(0, text.find('=')),
                     "; use --devices cpu=N (N ranks on the processor)"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--devices ", text,
                   ": expected auto or cpu=N with N from 1 "
                   "to ",
                   kMaxDevices));
}

}  // namespace

std::vector<std::vector<int>> SplitCores(const std::vector<int>& cores,
                                         int parts) {
  const size_t n = static_cast<size_t>(parts);
  std::vector<std::vector<int>> split(n);
  for (size_t i = 0; i < n; ++i) {
    if (cores.size() < n) {
      split[i] = {cores[i % cores.size()]};
      continue;
    }
    split[i].assign(
        cores.begin() + static_cast<long>(i * cores.size() / n),
        cores.begin() + static_cast<long>((i + 1) * cores.size() / n));
  }
  return split;
}

absl::StatusOr<NodeDevices> DetectDevices(std::string_view spec,
                                          const MachineFiles& files) {
  ASSIGN_OR_RETURN(const int count, CpuRanks(spec));
  NodeDevices node;
  node.memory_bytes = UsableMemory(files);
  const std::string model = CpuInfo(files, "model name");
  const bool amx =
      absl::StrCat(" ", CpuInfo(files, "flags"), " ").find(" amx_bf16 ") !=
      std::string::npos;
  const auto cores = SplitCores(AllowedCores(), count);
  for (int i = 0; i < count; ++i) {
    v1::Device device;
    device.set_name(absl::StrCat("cpu:", i));
    device.set_kind("cpu");
    device.set_model(model);
    device.set_memory_bytes(node.memory_bytes / count);
    for (const int core : cores[static_cast<size_t>(i)]) {
      device.add_cores(core);
    }
    device.set_fast_bfloat16(amx);
    node.devices.push_back(std::move(device));
  }
  return node;
}

}  // namespace qlora::agent
