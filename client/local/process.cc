#include "client/local/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/base/files.h"

namespace qlora::client {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(20);
// After SIGKILL a process only has to be taken down by the kernel.
constexpr absl::Duration kKillWait = absl::Seconds(5);

// What /proc/PID/stat says.
struct ProcessState {
  char state = 0;
  uint64_t start_time = 0;
};

std::optional<ProcessState> ReadState(pid_t pid) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/stat"));
  const std::string text(std::istreambuf_iterator<char>(in), {});
  // The name, in parentheses, may hold anything.
  const size_t name_end = text.rfind(") ");
  if (name_end == std::string::npos) return std::nullopt;
  const std::vector<std::string> fields =
      absl::StrSplit(text.substr(name_end + 2), ' ');
  // Counted from field 3 of proc(5): state; 22 is the start.
  if (fields.size() < 20 || fields[0].empty()) return std::nullopt;
  ProcessState state;
  state.state = fields[0][0];
  if (!absl::SimpleAtoi(fields[19], &state.start_time)) return std::nullopt;
  return state;
}

bool IsRunning(const ProcessState& state) {
  return state.state != 'Z' && state.state != 'X';
}

bool WaitUntilGone(const ProcessId& process, absl::Duration limit) {
  const absl::Time end = absl::Now() + limit;
  while (IsAlive(process)) {
    if (absl::Now() >= end) return false;
    ReapIfEnded(process);
    absl::SleepFor(kPoll);
  }
  return true;
}

// Runs in the child: only what is safe after a fork.
[[noreturn]] void ExecChild(const SpawnOptions& options, char* const* argv,
                            int error_pipe) {
  if (options.die_with_parent) ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  ::setsid();
  const int null = ::open("/dev/null", O_RDONLY);
  ::dup2(null, STDIN_FILENO);
  if (!options.log_file.empty()) {
    const int log = ::open(options.log_file.c_str(),
                           O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    ::dup2(log, STDOUT_FILENO);
    ::dup2(log, STDERR_FILENO);
  }
  // What the caller has open is none of the program's: it would keep locks and
  // pipes alive.
  ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::chdir(options.working_directory.c_str()) == 0) {
    ::execv(argv[0], argv);
  }
  const int error = errno;
  [[maybe_unused]] const ssize_t n = ::write(error_pipe, &error, sizeof(error));
  ::_exit(127);
}

}  // namespace

absl::StatusOr<ProcessId> Spawn(const SpawnOptions& options) {
  std::vector<char*> argv;
  for (const std::string& arg : options.argv) {
    argv.push_back(const_cast<char*>(arg.c_str()));
  }
  argv.push_back(nullptr);
  // Tells an exec that failed (errno comes through) from one that worked (the
  // end closes).
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) return ErrnoToStatus(errno, "pipe");
  const pid_t pid = ::fork();
  if (pid == 0) ExecChild(options, argv.data(), pipe[1]);
  ::close(pipe[1]);
  int error = pid < 0 ? errno : 0;
  if (pid > 0 && ::read(pipe[0], &error, sizeof(error)) > 0) {
    ::waitpid(pid, nullptr, 0);
  }
  ::close(pipe[0]);
  if (error != 0) return ErrnoToStatus(error, options.argv[0]);
  const std::optional<ProcessState> state = ReadState(pid);
  return ProcessId{pid, state ? state->start_time : 0};
}

bool IsAlive(const ProcessId& process) {
  if (process.pid <= 0) return false;
  const std::optional<ProcessState> state = ReadState(process.pid);
  return state && IsRunning(*state) && state->start_time == process.start_time;
}

bool ReapIfEnded(const ProcessId& child) {
  return ::waitpid(child.pid, nullptr, WNOHANG) == child.pid;
}

bool StopProcess(const ProcessId& process, absl::Duration grace) {
  if (process.pid <= 0) return true;  // Never started.
  bool clean = true;
  if (IsAlive(process)) {
    ::kill(process.pid, SIGTERM);
    if (!WaitUntilGone(process, grace)) {
      ::kill(process.pid, SIGKILL);
      WaitUntilGone(process, kKillWait);
      clean = false;
    }
  }
  ReapIfEnded(process);
  return clean;
}

}  // namespace qlora::client
