// One control group (version 2) for the processes of an attempt, where this
// process may make one: what leaves its process group is still found and
// killed, and the kernel tells whether memory was the reason. Used by one
// thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

namespace qlora::agent {

class Cgroup {
 public:
  // Null where there is no version 2 hierarchy or it is not writable, and where
  // another process already has a group of that name.
  static std::unique_ptr<Cgroup> Create(const std::string& name);
  // Kills what is left in the group and removes it.
  ~Cgroup();
  Cgroup(const Cgroup&) = delete;
  Cgroup& operator=(const Cgroup&) = delete;

  bool Add(pid_t pid) const;
  void KillAll() const;
  // Processes that the kernel killed for want of memory; -1: unknown.
  int64_t OomKills() const;

 private:
  explicit Cgroup(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// Processes that the kernel killed for want of memory since it started, on the
// whole machine; -1: unknown.
int64_t SystemOomKills();

}  // namespace qlora::agent
