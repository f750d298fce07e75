#include "worker/agent/launcher_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "worker/agent/cgroup.h"
#include "worker/agent/launcher_wire.h"
#include "worker/agent/proc_stat.h"

namespace qlora::agent {
namespace {

constexpr int kFirstInherited = 3;

std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename().string();
    pid_t pid = 0;
    const auto [end, failure] =
        std::from_chars(name.data(), name.data() + name.size(), pid);
    if (failure != std::errc() || *end != '\0') continue;
    const std::optional<ProcStat> stat = ReadProcStat(pid);
    if (stat.has_value() && stat->parent == parent) children.push_back(pid);
  }
  return children;
}

struct Child {
  pid_t pid = 0;
  std::string group;
  int64_t oom_kills_before = -1;
};

struct Group {
  int members = 0;
  std::unique_ptr<Cgroup> cgroup;
  int64_t OomKills() const {
    const int64_t kills = cgroup != nullptr ? cgroup->OomKills() : -1;
    return kills >= 0 ? kills : SystemOomKills();
  }
};

class LauncherProcess {
 public:
  explicit LauncherProcess(int socket) : socket_(socket) {}

  [[noreturn]] void Run() {
    Isolate();
    while (true) {
      pollfd fds[] = {{.fd = socket_.get(), .events = POLLIN, .revents = 0},
                      {.fd = signals_.get(), .events = POLLIN, .revents = 0}};
      if (::poll(fds, 2, -1) < 0 && errno != EINTR) Leave();
      if (fds[1].revents != 0) {
        signalfd_siginfo info;
        [[maybe_unused]] const ssize_t n =
            ::read(signals_.get(), &info, sizeof(info));
        Reap();
      }
      if (fds[0].revents != 0) HandleRequest();
    }
  }

 private:
  // Ctrl-C and a terminal's end reach the agent, which then decides.
  void Isolate() {
    ::setsid();
    ::prctl(PR_SET_NAME, "qlora-launcher");
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE}) {
      ::signal(signal, SIG_IGN);
    }
    sigset_t mask;
    ::sigemptyset(&mask);
    ::sigaddset(&mask, SIGCHLD);
    ::sigprocmask(SIG_SETMASK, &mask, nullptr);
    signals_.Reset(::signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_.valid()) ::_exit(1);
  }

  void HandleRequest() {
    auto packet = ReceivePacket(socket_.get());
    if (!packet.ok() || packet->bytes.empty()) Leave();
    const auto request = DecodeRequest(packet->bytes);
    if (!request.ok()) Leave();
    if (request->type == LauncherRequest::Type::kKill) {
      const auto it = children_.find(request->kill.id);
      if (it != children_.end()) {
        Signal(it->second.pid, request->kill.signal);
      }
    } else {
      Spawn(request->spawn, std::move(packet->fds));
    }
  }

  static void Signal(pid_t pid, int signal) {
    // Before its setsid, the child has no group yet.
    if (::kill(-pid, signal) != 0) ::kill(pid, signal);
  }

  void Spawn(const SpawnRequest& request, std::vector<UniqueFd> fds) {
    LauncherReply reply{.type = LauncherReply::Type::kFailed, .id = request.id};
    int failure[2];
    if (fds.size() < 3 || ::pipe2(failure, O_CLOEXEC) != 0) {
      reply.error = "no descriptors for a new process";
      return Send(reply);
    }
    UniqueFd failure_in(failure[0]);
    UniqueFd failure_out(failure[1]);
    Group& group = groups_[request.group];
    const pid_t launcher = ::getpid();
    if (group.members++ == 0) {
      // Two workers of one machine may hold ranks of the same attempt.
      group.cgroup =
          Cgroup::Create(request.group + "-" + std::to_string(launcher));
    }
    const int64_t oom_kills = group.OomKills();
    const pid_t pid = ::fork();
    if (pid == 0) RunChild(request, fds, group, launcher, failure_out.get());
    failure_out.Reset();
    char error[256];
    const ssize_t n =
        pid < 0 ? 0 : ::read(failure_in.get(), error, sizeof(error));
    if (pid < 0 || n > 0) {
      reply.error = pid < 0 ? std::strerror(errno)
                            : std::string(error, static_cast<size_t>(n));
      if (pid > 0) ::waitpid(pid, nullptr, 0);
      LeaveGroup(request.group);
      return Send(reply);
    }
    children_[request.id] = {
        .pid = pid, .group = request.group, .oom_kills_before = oom_kills};
    reply.type = LauncherReply::Type::kSpawned;
    reply.pid = pid;
    Send(reply);
  }

  [[noreturn]] static void RunChild(const SpawnRequest& request,
                                    const std::vector<UniqueFd>& fds,
                                    const Group& group, pid_t launcher,
                                    int failure) {
    const auto fail = [&](const char* what) {
      const std::string text =
          request.argv[0] + ": " + what + ": " + std::strerror(errno);
      [[maybe_unused]] const ssize_t n =
          ::write(failure, text.data(), text.size());
      ::_exit(127);
    };
    ::setsid();
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != launcher) ::_exit(127);
    if (group.cgroup != nullptr) group.cgroup->Add(::getpid());
    if (!request.cores.empty()) {
      cpu_set_t cores;
      CPU_ZERO(&cores);
      for (const int core : request.cores) CPU_SET(core, &cores);
      if (::sched_setaffinity(0, sizeof(cores), &cores) != 0) {
        fail("binding to its cores");
      }
    }
    if (!request.directory.empty() && ::chdir(request.directory.c_str()) != 0) {
      fail("entering its work directory");
    }
    if (!PlaceDescriptors(fds, failure)) fail("descriptors");
    ResetSignals();
    std::vector<char*> argv = Pointers(request.argv);
    std::vector<char*> environment = Pointers(request.environment);
    ::execve(argv[0], argv.data(), environment.data());
    fail("starting it");
    ::_exit(127);
  }

  static std::vector<char*> Pointers(const std::vector<std::string>& strings) {
    std::vector<char*> pointers;
    for (const std::string& s : strings) {
      pointers.push_back(const_cast<char*>(s.c_str()));
    }
    pointers.push_back(nullptr);
    return pointers;
  }

  // Moves the descriptors to their numbers, standard input to /dev/null, and
  // closes the rest. `failure` is moved out of the way and closes on exec.
  static bool PlaceDescriptors(const std::vector<UniqueFd>& fds, int& failure) {
    // Above every number that is about to be written over.
    constexpr int kAside = 16;
    const auto aside = [](int fd) {
      return ::fcntl(fd, F_DUPFD_CLOEXEC, kAside);
    };
    failure = aside(failure);
    const int frames = aside(fds[0].get());
    const int out = aside(fds[1].get());
    const int err = aside(fds[2].get());
    const int listener = fds.size() > 3 ? aside(fds[3].get()) : -1;
    const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    int last = kFirstInherited;
    bool ok = failure >= 0 && ::dup2(null, 0) == 0 && ::dup2(out, 1) == 1 &&
              ::dup2(err, 2) == 2 && ::dup2(frames, kFirstInherited) >= 0;
    if (listener >= 0) {
      last = kFirstInherited + 1;
      ok = ok && ::dup2(listener, last) == last;
    }
    ::close_range(static_cast<unsigned>(last + 1),
                  static_cast<unsigned>(failure - 1), 0);
    ::close_range(static_cast<unsigned>(failure + 1), ~0u, 0);
    return ok;
  }

  static void ResetSignals() {
    for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
  }

  void Reap() {
    bool child_ended = false;
    siginfo_t info = {};
    // Looked at before it is reaped, while its process group cannot be another.
    while (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid != 0) {
      const pid_t pid = info.si_pid;
      ::kill(-pid, SIGKILL);
      int status = 0;
      ::waitpid(pid, &status, 0);
      child_ended |= Report(pid, status);
      info = {};
    }
    if (child_ended) KillOrphans();
  }

  // False if it was an orphan.
  bool Report(pid_t pid, int status) {
    for (auto it = children_.begin(); it != children_.end(); ++it) {
      if (it->second.pid != pid) continue;
      const Child child = it->second;
      LauncherReply reply{
          .type = LauncherReply::Type::kExited, .id = it->first, .pid = pid};
      if (WIFSIGNALED(status)) reply.signal = WTERMSIG(status);
      if (WIFEXITED(status)) reply.exit_code = WEXITSTATUS(status);
      reply.out_of_memory =
          reply.signal == SIGKILL && child.oom_kills_before >= 0 &&
          groups_[child.group].OomKills() > child.oom_kills_before;
      children_.erase(it);
      LeaveGroup(child.group);
      Send(reply);
      return true;
    }
    return false;
  }

  void LeaveGroup(const std::string& group) {
    const auto it = groups_.find(group);
    if (--it->second.members == 0) groups_.erase(it);
  }

  // Whatever else became our child lost its parent: a rank that ended.
  void KillOrphans() {
    for (const pid_t pid : ChildrenOf(::getpid())) {
      bool known = false;
      for (const auto& [id, child] : children_) known |= child.pid == pid;
      if (!known) ::kill(pid, SIGKILL);
    }
  }

  void Send(const LauncherReply& reply) {
    if (!SendPacket(socket_.get(), EncodeReply(reply), {}).ok()) Leave();
  }

  // Each round may bring orphans of those killed in the one before.
  [[noreturn]] void Leave() {
    for (const auto& [name, group] : groups_) {
      if (group.cgroup != nullptr) group.cgroup->KillAll();
    }
    while (true) {
      const std::vector<pid_t> children = ChildrenOf(::getpid());
      if (children.empty()) {
        // Empty groups only can be removed.
        groups_.clear();
        ::_exit(0);
      }
      for (const pid_t pid : children) Signal(pid, SIGKILL);
      while (::waitpid(-1, nullptr, WNOHANG) > 0) {
      }
      ::usleep(2000);
    }
  }

  UniqueFd socket_;
  UniqueFd signals_;
  std::map<uint64_t, Child> children_;
  std::map<std::string, Group> groups_;
};

}  // namespace

void RunLauncherProcess(int socket) { LauncherProcess(socket).Run(); }

}  // namespace qlora::agent
