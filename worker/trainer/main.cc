// qlora-trainer: one rank, started by an agent. File descriptor 3 is the socket
// to the agent; rank 0 of several finds the rendezvous socket on 4.
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <string_view>

#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "common/spec/memory_plan.h"
#include "worker/frames/rank_start.h"
#include "worker/trainer/agent_link.h"
#include "worker/trainer/device.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/tasks.h"
#include "worker/trainer/torch_guard.h"

namespace qlora::trainer {
namespace {

constexpr int kExitUsage = 2;

AgentLink* signalled_link = nullptr;

void OnTerminate(int) { signalled_link->RequestStop(); }

absl::Status RunTask(const v1::TrainerTask& task, AgentLink& link) {
  SetThreads(task.threads());
  link.set_rank(task.rank());
  v1::TrainerEvent ready;
  ready.mutable_ready()->set_version(QLORA_VERSION);
  link.Send(ready);
  switch (task.mode()) {
    case v1::TRAINER_MODE_TRAIN:
      return RunTrain(task, link);
    case v1::TRAINER_MODE_EVAL:
      return RunEval(task, link);
    case v1::TRAINER_MODE_GENERATE:
      return RunGenerate(task, link);
    case v1::TRAINER_MODE_PLAN:
      return RunPlan(task, link);
    default:
      return absl::InvalidArgumentError("the task has no mode that I know");
  }
}

// Runs the one task of this process and gives its exit code.
int RunRank(AgentLink& link) {
  const absl::StatusOr<v1::TrainerTask> task = link.ReadTask();
  const absl::Status status =
      task.ok() ? TorchGuard("task", [&] { return RunTask(*task, link); })
                : task.status();
  if (status.ok()) return 0;
  const Failure failure = ClassifyFailure(status);
  LogError("the task failed",
           {{"class", v1::FailureClass_Name(failure.failure_class)},
            {"error", status}});
  v1::TrainerEvent event;
  event.mutable_failure()->set_failure_class(failure.failure_class);
  event.mutable_failure()->set_message(
      ToValidUtf8(std::string(status.message())));
  event.mutable_failure()->set_checkpoint_unusable(
      absl::IsDataLoss(status) && task.ok() &&
      !task->resume_directory().empty());
  event.mutable_failure()->set_least_memory(IsLeastMemory(status));
  link.Send(event);
  return failure.exit_code;
}

int Main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "--version") {
    std::printf("qlora-trainer %s (LibTorch %s)\n", QLORA_VERSION,
                std::string(TorchVersion()).c_str());
    return 0;
  }
  struct stat info {};
  if (argc > 1 || fstat(kRankFramesFd, &info) != 0 || !S_ISSOCK(info.st_mode)) {
    std::fprintf(stderr,
                 "error: qlora-trainer is started by qlora-worker and takes "
                 "its task from a socket on file descriptor 3\n"
                 "hint: qloractl submit -f job.yaml\n");
    return kExitUsage;
  }
  InitLogging("qlora-trainer", LogFormat::kText);
  AgentLink link(kRankFramesFd, [] { _exit(kExitParentGone); });
  signalled_link = &link;
  struct sigaction action {};
  action.sa_handler = OnTerminate;
  sigaction(SIGTERM, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const int code = RunRank(link);
  // Not exit: threads of the tensor library may still run, and nothing here
  // is left to flush.
  std::fflush(nullptr);
  _exit(code);
}

}  // namespace
}  // namespace qlora::trainer

int main(int argc, char** argv) { return qlora::trainer::Main(argc, argv); }
