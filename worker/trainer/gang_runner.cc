#include "worker/trainer/gang_runner.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "worker/frames/frames.h"
#include "worker/frames/rank_start.h"

namespace qlora::trainer {
namespace {

// The same file at a number that the child's 3 and 4 cannot collide with.
int MoveUp(int fd) {
  const int moved = fcntl(fd, F_DUPFD_CLOEXEC, 16);
  close(fd);
  return moved;
}

// This process's, and what the agent adds (worker/agent/rank_process.cc).
std::vector<char*> RankEnvironment() {
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    environment.push_back(*entry);
  }
  environment.push_back(const_cast<char*>(kRankSpin));
  environment.push_back(nullptr);
  return environment;
}

absl::StatusOr<int> ListenOnLoopback(std::string& address) {
  const int fd = MoveUp(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(in);
  auto* raw = reinterpret_cast<sockaddr*>(&in);
  if (bind(fd, raw, size) != 0 || listen(fd, 64) != 0 ||
      getsockname(fd, raw, &size) != 0) {
    return ErrnoToStatus(errno, "listening on loopback");
  }
  address = absl::StrCat("127.0.0.1:", ntohs(in.sin_port));
  return fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Gang>> Gang::Start(const std::string& program,
                                                  const v1::TrainerTask& task,
                                                  OnEvent on_event,
                                                  const AdjustTask& adjust) {
  std::unique_ptr<Gang> gang(new Gang());
  gang->on_event_ = std::move(on_event);
  ASSIGN_OR_RETURN(const int listen_fd, ListenOnLoopback(gang->address_));
  absl::Status status;
  for (int rank = 0; rank < task.world_size() && status.ok(); ++rank) {
    v1::TrainerTask own = task;
    own.set_rank(rank);
    if (adjust) adjust(own);
    status = gang->Spawn(program, own, listen_fd);
  }
  close(listen_fd);
  RETURN_IF_ERROR(status);
  for (int rank = 0; rank < task.world_size(); ++rank) {
    gang->ranks_[rank]->reader =
        std::thread([g = gang.get(), rank] { g->ReadEvents(rank); });
  }
  return gang;
}

absl::Status Gang::Spawn(const std::string& program,
                         const v1::TrainerTask& task, int listen_fd) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    return ErrnoToStatus(errno, "socketpair");
  }
  const int child_fd = MoveUp(fds[1]);
  auto child = std::make_unique<Rank>();
  child->fd = MoveUp(fds[0]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, child_fd, kRankFramesFd);
  if (task.rank() == 0) {
    posix_spawn_file_actions_adddup2(&actions, listen_fd, kRankListenFd);
  }
  char* const argv[] = {const_cast<char*>(program.c_str()), nullptr};
  const int error = posix_spawn(&child->pid, program.c_str(), &actions, nullptr,
                                argv, RankEnvironment().data());
  posix_spawn_file_actions_destroy(&actions);
  close(child_fd);
  if (error != 0) {
    close(child->fd);
    return ErrnoToStatus(error, program);
  }
  v1::TrainerCommand command;
  *command.mutable_task() = task;
  const absl::Status sent = WriteFrame(child->fd, command);
  ranks_.push_back(std::move(child));
  return sent;
}

void Gang::ReadEvents(int rank) {
  Rank& r = *ranks_[rank];
  while (true) {
    v1::TrainerEvent event;
    const absl::StatusOr<bool> more = ReadFrame(r.fd, &event);
    if (!more.ok() || !*more) return;
    if (event.has_ready()) CountReady();
    if (on_event_) on_event_(*this, rank, event);
    r.outcome.events.push_back(std::move(event));
  }
}

void Gang::CountReady() {
  {
    MutexLock lock(&mu_);
    if (++ready_ < ranks_.size()) return;
  }
  v1::TrainerCommand command;
  command.mutable_start()->set_rendezvous_address(address_);
  for (size_t r = 0; r < ranks_.size(); ++r) Send(static_cast<int>(r), command);
}

void Gang::Send(int rank, const v1::TrainerCommand& command) {
  MutexLock lock(&mu_);
  // A rank that is gone shows in its outcome.
  WriteFrame(ranks_[rank]->fd, command).IgnoreError();
}

void Gang::Signal(int rank, int signal) { kill(ranks_[rank]->pid, signal); }

void Gang::Abandon(int rank) { shutdown(ranks_[rank]->fd, SHUT_RDWR); }

std::vector<RankOutcome> Gang::Wait() {
  std::vector<RankOutcome> outcomes;
  for (auto& rank : ranks_) {
    if (rank->reader.joinable()) rank->reader.join();
    if (rank->pid > 0) {
      int status = 0;
      waitpid(rank->pid, &status, 0);
      rank->outcome.exit_code =
          WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      rank->pid = -1;
    }
    outcomes.push_back(rank->outcome);
  }
  return outcomes;
}

Gang::~Gang() {
  for (auto& rank : ranks_) {
    if (rank->pid > 0) kill(rank->pid, SIGKILL);
  }
  Wait();
  for (auto& rank : ranks_) close(rank->fd);
}

}  // namespace qlora::trainer
