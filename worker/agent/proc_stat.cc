#include "worker/agent/proc_stat.h"

#include <cstdlib>
#include <fstream>
#include <string>

namespace qlora::agent {

std::optional<ProcStat> ReadProcStat(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string stat;
  std::getline(in, stat);
  // pid (name, which may hold anything) state parent ...
  const size_t end = stat.rfind(')');
  if (end == std::string::npos || end + 4 > stat.size()) return std::nullopt;
  return ProcStat{.state = stat[end + 2],
                  .parent = std::atoi(stat.c_str() + end + 4)};
}

}  // namespace qlora::agent
