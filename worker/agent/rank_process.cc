#include "worker/agent/rank_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/utf8.h"
#include "worker/frames/frames.h"
#include "worker/frames/rank_start.h"

namespace qlora::agent {
namespace {

// A turn of the loop reads so much of a stream, or one buffer if that is more.
constexpr size_t kTurn = 1;
// More than sockets and pipes hold of a process that is dead.
constexpr size_t kRest = 16 << 20;
// Of what a rank says why it failed.
constexpr size_t kMaxMessage = 16 << 10;

// Nothing of the agent's own environment reaches a rank but what it needs to
// run, and the sanitizers' options.
std::vector<std::string> RankEnvironment(int threads) {
  std::vector<std::string> environment = {
      "LANG=C.UTF-8", absl::StrCat("OMP_NUM_THREADS=", threads),
      absl::StrCat("MKL_NUM_THREADS=", threads), kRankSpin};
  for (const char* name : {"PATH", "HOME", "TMPDIR", "ASAN_OPTIONS",
                           "LSAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS"}) {
    const char* value = std::getenv(name);
    if (value != nullptr) {
      environment.push_back(absl::StrCat(name, "=", value));
    }
  }
  return environment;
}

// Sets up one of the pipes: our end does not block.
absl::Status MakePipe(UniqueFd& ours, UniqueFd& theirs) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoToStatus(errno, "pipe");
  ours.Reset(ends[0]);
  theirs.Reset(ends[1]);
  ::fcntl(ours.get(), F_SETFL, O_NONBLOCK);
  return absl::OkStatus();
}

}  // namespace

RankProcess::RankProcess(EventLoop& loop, Processes& processes,
                         RankOptions options, Handlers handlers)
    : loop_(loop),
      processes_(processes),
      handlers_(std::move(handlers)),
      stdout_lines_(handlers_.on_line),
      stderr_lines_(handlers_.on_line) {
  end_.rank = options.rank;
  const absl::Status status = Start(std::move(options));
  if (status.ok()) return;
  // Without descriptors nothing is spawned; the answer comes from the loop.
  process_ = processes_.Spawn({}, {}, [this, status](const LauncherReply&) {
    OnReply({.type = LauncherReply::Type::kFailed,
             .error = std::string(status.message())});
  });
}

RankProcess::~RankProcess() {
  processes_.Forget(process_);
  if (!ended_) processes_.Kill(process_, SIGKILL);
  for (const int fd : {socket_.get(), stdout_.get(), stderr_.get()}) {
    loop_.Unwatch(fd);
  }
}

absl::Status RankProcess::Start(RankOptions options) {
  SpawnFds fds;
  int sockets[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    return ErrnoToStatus(errno, "socket pair");
  }
  socket_.Reset(sockets[0]);
  fds.frames.Reset(sockets[1]);
  ::fcntl(socket_.get(), F_SETFL, O_NONBLOCK);
  absl::Status status = MakePipe(stdout_, fds.stdout_pipe);
  if (status.ok()) status = MakePipe(stderr_, fds.stderr_pipe);
  if (!status.ok()) return status;
  fds.listener = std::move(options.listener);
  WatchSocket();
  loop_.Watch(stdout_.get(), POLLIN, [this](short) {
    if (!ReadLines(stdout_.get(), stdout_lines_, kTurn)) {
      loop_.Unwatch(stdout_.get());
    }
  });
  loop_.Watch(stderr_.get(), POLLIN, [this](short) {
    if (!ReadLines(stderr_.get(), stderr_lines_, kTurn)) {
      loop_.Unwatch(stderr_.get());
    }
  });
  process_ = processes_.Spawn(
      {.argv = {options.trainer},
       .environment = RankEnvironment(options.threads),
       .directory = options.directory,
       .cores = options.cores,
       .group = options.group},
      std::move(fds), [this](const LauncherReply& reply) { OnReply(reply); });
  return absl::OkStatus();
}

void RankProcess::OnReply(const LauncherReply& reply) {
  switch (reply.type) {
    case LauncherReply::Type::kSpawned:
      pid_ = reply.pid;
      handlers_.on_started();
      return;
    case LauncherReply::Type::kFailed: {
      v1::TrainerFailure failure;
      failure.set_failure_class(v1::FAILURE_CLASS_INFRA);
      failure.set_message(ToValidUtf8(
          absl::StrCat("the trainer cannot be started: ", reply.error)));
      end_.failure = std::move(failure);
      break;
    }
    case LauncherReply::Type::kExited:
      end_.exit_code = reply.exit_code;
      end_.signal = reply.signal;
      end_.out_of_memory = reply.out_of_memory;
      break;
  }
  End();
}

void RankProcess::WatchSocket() {
  const short events = pending_.empty() ? POLLIN : POLLIN | POLLOUT;
  loop_.Watch(socket_.get(), events,
              [this](short revents) { OnSocket(revents); });
}

void RankProcess::OnSocket(short revents) {
  if ((revents & POLLOUT) != 0) {
    WritePending();
    WatchSocket();
  }
  if ((revents & (POLLIN | POLLHUP | POLLERR)) != 0 && !ReadEvents(kTurn)) {
    // Its exit follows.
    loop_.Unwatch(socket_.get());
  }
}

void RankProcess::Send(const v1::TrainerCommand& command) {
  if (ended_ || rejected_ || !socket_.valid()) return;
  const auto frame = EncodeFrame(command);
  if (!frame.ok()) return Reject(std::string(frame.status().message()));
  pending_ += *frame;
  WritePending();
  WatchSocket();
}

void RankProcess::WritePending() {
  while (!pending_.empty()) {
    const ssize_t n =
        ::send(socket_.get(), pending_.data(), pending_.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) {
      // It is gone; its exit follows.
      pending_.clear();
      return;
    }
    pending_.erase(0, static_cast<size_t>(n));
  }
}

bool RankProcess::ReadEvents(size_t most) {
  char buffer[1 << 16];
  for (size_t got = 0; got < most && !rejected_;) {
    const ssize_t n = ::read(socket_.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) return false;
    got += static_cast<size_t>(n);
    decoder_.Append({buffer, static_cast<size_t>(n)});
    DecodeEvents();
  }
  return !rejected_;
}

void RankProcess::DecodeEvents() {
  while (!rejected_) {
    auto message = decoder_.Next();
    if (!message.ok()) return Reject(std::string(message.status().message()));
    if (!message->has_value()) return;
    v1::TrainerEvent event;
    if (!event.ParseFromString(**message)) {
      return Reject("a frame that is no TrainerEvent");
    }
    if (event.has_failure()) {
      end_.failure = event.failure();
      end_.failure->set_message(
          Abridged(event.failure().message(), kMaxMessage));
    }
    if (event.has_result()) end_.result = event.result();
    handlers_.on_event(std::move(event));
  }
}

void RankProcess::Reject(std::string_view why) {
  v1::TrainerFailure failure;
  failure.set_failure_class(v1::FAILURE_CLASS_INTERNAL);
  failure.set_message(
      absl::StrCat("agent and trainer misunderstand each "
                   "other: ",
                   std::string(why)));
  end_.failure = std::move(failure);
  rejected_ = true;
  loop_.Unwatch(socket_.get());
  processes_.Kill(process_, SIGKILL);
}

bool RankProcess::ReadLines(int fd, LineSplitter& lines, size_t most) {
  char buffer[1 << 14];
  for (size_t got = 0; got < most;) {
    const ssize_t n = ::read(fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) return false;
    got += static_cast<size_t>(n);
    lines.Append({buffer, static_cast<size_t>(n)});
  }
  return true;
}

void RankProcess::Kill() {
  if (ended_) return;
  end_.killed_by_agent = true;
  processes_.Kill(process_, SIGKILL);
}

void RankProcess::End() {
  if (socket_.valid()) ReadEvents(kRest);
  if (stdout_.valid()) ReadLines(stdout_.get(), stdout_lines_, kRest);
  if (stderr_.valid()) ReadLines(stderr_.get(), stderr_lines_, kRest);
  stdout_lines_.Finish();
  stderr_lines_.Finish();
  for (UniqueFd* fd : {&socket_, &stdout_, &stderr_}) {
    loop_.Unwatch(fd->get());
    fd->Reset();
  }
  ended_ = true;
  handlers_.on_end();
}

}  // namespace qlora::agent
