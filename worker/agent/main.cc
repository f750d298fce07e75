// qlora-worker: the agent of one node.
#include <signal.h>
#include <sys/wait.h>

#include <cstdio>

#include "common/base/log.h"
#include "worker/agent/launcher.h"
#include "worker/agent/options.h"
#include "worker/agent/worker.h"

namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
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
  // Its socket is closed: it ends with the last rank.
  ::waitpid(launcher_pid, nullptr, 0);
  if (!ended.ok()) return Fail(ended);
  return 0;
}
