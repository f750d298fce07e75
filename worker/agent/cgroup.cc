#include "worker/agent/cgroup.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string_view>
#include <utility>

namespace qlora::agent {
namespace {

bool WriteControl(const std::string& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool ok = ::write(fd, text.data(), text.size()) ==
                  static_cast<ssize_t>(text.size());
  ::close(fd);
  return ok;
}

// The value after `key` in a file of "key value" lines; -1 if there is none.
int64_t ReadKey(const std::string& path, std::string_view key) {
  std::ifstream in(path);
  std::string name;
  int64_t value;
  while (in >> name >> value) {
    if (name == key) return value;
  }
  return -1;
}

// Where this process's own group of the version 2 hierarchy lies.
std::string OwnGroup() {
  std::ifstream in("/proc/self/cgroup");
  std::string line;
  std::string group;
  while (std::getline(in, line)) {
    if (line.rfind("0::", 0) == 0) group = line.substr(3);
  }
  if (group.empty()) return "";
  if (group == "/") group.clear();
  for (const char* root : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
    const std::string path = root + group;
    if (::access((path + "/cgroup.procs").c_str(), W_OK) == 0 &&
        ::access((std::string(root) + "/cgroup.controllers").c_str(), F_OK) ==
            0) {
      return path;
    }
  }
  return "";
}

}  // namespace

std::unique_ptr<Cgroup> Cgroup::Create(const std::string& name) {
  const std::string own = OwnGroup();
  if (own.empty()) return nullptr;
  const std::string path = own + "/qlora-" + name;
  // An empty one was left behind by a crash; one in use stays.
  ::rmdir(path.c_str());
  if (::mkdir(path.c_str(), 0755) != 0) return nullptr;
  std::unique_ptr<Cgroup> group(new Cgroup(path));
  if (::access((path + "/cgroup.kill").c_str(), W_OK) != 0) return nullptr;
  return group;
}

Cgroup::~Cgroup() {
  KillAll();
  // Dying processes keep the group for a moment.
  for (int i = 0; i < 50 && ::rmdir(path_.c_str()) != 0 && errno == EBUSY;
       ++i) {
    ::usleep(2000);
  }
}

bool Cgroup::Add(pid_t pid) const {
  return WriteControl(path_ + "/cgroup.procs", std::to_string(pid));
}

void Cgroup::KillAll() const { WriteControl(path_ + "/cgroup.kill", "1"); }

int64_t Cgroup::OomKills() const {
  return ReadKey(path_ + "/memory.events", "oom_kill");
}

int64_t SystemOomKills() { return ReadKey("/proc/vmstat", "oom_kill"); }

}  // namespace qlora::agent
