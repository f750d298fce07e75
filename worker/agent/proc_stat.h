// What the kernel says of a process. Stateless.
#pragma once

#include <sys/types.h>

#include <optional>

namespace qlora::agent {

struct ProcStat {
  // As in proc(5): 'R', 'S', 'D', 'T' (stopped by a signal), 'Z'...
  char state = '?';
  pid_t parent = 0;
};

// None if there is no such process.
std::optional<ProcStat> ReadProcStat(pid_t pid);

}  // namespace qlora::agent
