// What this node offers to ranks. Reads the machine; no state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "qlora/v1/node.pb.h"

namespace qlora::agent {

// Where the machine is read from; tests point it elsewhere.
struct MachineFiles {
  std::string proc = "/proc";
  std::string cgroup = "/sys/fs/cgroup";
};

struct NodeDevices {
  std::vector<v1::Device> devices;
  // What ranks share: physical memory or the control group's limit, bytes.
  int64_t memory_bytes = 0;
};

// `spec` is "auto" (one CPU rank with every core) or "cpu=N". Cores are those
// this process may use, split evenly and disjoint; with fewer cores than
// devices, devices share. InvalidArgument: another spec, or a device that this
// build has no support for.
absl::StatusOr<NodeDevices> DetectDevices(std::string_view spec,
                                          const MachineFiles& files = {});

// Splits cores into `parts` runs whose lengths differ by at most one; with
// fewer cores than parts, part i gets core i modulo their number.
std::vector<std::vector<int>> SplitCores(const std::vector<int>& cores,
                                         int parts);

}  // namespace qlora::agent
