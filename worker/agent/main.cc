// qlora-worker: the agent of one node.
#include <signal.h>
#include <sys/wait.h>

#include <cstdio>

#include "absl/time/clock.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "worker/agent/launcher.h"
#include "worker/agent/options.h"
#include "worker/agent/worker.h"

namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}

// Its socket is closed: it ends with the last rank. One that is stuck in the
// kernel cannot be killed; the launcher then waits for it alone.
void AwaitLauncher(pid_t pid) {
  constexpr absl::Duration kPatience = absl::Seconds(5);
  constexpr absl::Duration kPoll = absl::Milliseconds(10);
  const absl::Time deadline = qlora::SteadyNow() + kPatience;
  while (::waitpid(pid, nullptr, WNOHANG) == 0) {
    if (qlora::SteadyNow() > deadline) {
      qlora::LogWarning("the launcher has not ended; it or a rank is stuck",
                        {{"launcher", pid}});
      return;
    }
    absl::SleepFor(kPoll);
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace qlora;
  agent::WorkerOptions options;
  if (const auto code = agent::ParseCommandLine(argc, argv, options)) {
    return *code;
  }
  // Before any thread: the launcher must not inherit half a lock.
  auto launcher = agent::Launcher::Start();
  if (!launcher.ok()) return Fail(launcher.status());
  InitLogging("qlora-worker", options.log_format == "json" ? LogFormat::kJson
                                                           : LogFormat::kText);
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  const pid_t launcher_pid = launcher->pid();
  const absl::Status ended = agent::RunWorker(options, *std::move(launcher));
  AwaitLauncher(launcher_pid);
  if (!ended.ok()) return Fail(ended);
  return 0;
}
