#include "worker/trainer/agent_link.h"

#include <sys/socket.h>

#include <utility>

#include "absl/time/clock.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "worker/frames/frames.h"

namespace qlora::trainer {
namespace {

// Far below a frame's bound, far above what anybody reads.
constexpr size_t kMaxText = 16 << 10;

}  // namespace

AgentLink::AgentLink(int fd, std::function<void()> on_lost)
    : fd_(fd), on_lost_(std::move(on_lost)) {}

AgentLink::~AgentLink() {
  finished_.store(true);
  shutdown(fd_, SHUT_RD);
  if (reader_.joinable()) reader_.join();
}

absl::StatusOr<v1::TrainerTask> AgentLink::ReadTask() {
  v1::TrainerCommand command;
  ASSIGN_OR_RETURN(const bool more, ReadFrame(fd_, &command));
  if (!more) return absl::UnavailableError("the agent closed the socket");
  if (!command.has_task()) {
    return absl::InvalidArgumentError("the first command is no task");
  }
  reader_ = std::thread([this] { ReadCommands(); });
  return std::move(*command.mutable_task());
}

absl::StatusOr<v1::TrainerStart> AgentLink::WaitForStart() {
  MutexLock lock(&mu_);
  while (!start_ && !lost_ && !stop_requested()) {
    changed_.WaitWithTimeout(&mu_, absl::Milliseconds(100));
  }
  if (start_) return *start_;
  if (lost_) return absl::UnavailableError("the agent is gone");
  return absl::CancelledError("told to stop before the start");
}

void AgentLink::Send(v1::TrainerEvent event) {
  if (event.failure().message().size() > kMaxText) {
    *event.mutable_failure()->mutable_message() =
        Abridged(event.failure().message(), kMaxText);
  }
  if (event.log().text().size() > kMaxText) {
    *event.mutable_log()->mutable_text() =
        Abridged(event.log().text(), kMaxText);
  }
  if (event.has_result() || event.has_failure()) finished_.store(true);
  absl::Status status;
  {
    MutexLock lock(&write_mu_);
    status = WriteFrame(fd_, event);
  }
  if (absl::IsUnavailable(status)) {
    Lost();
  } else if (!status.ok()) {
    LogError("an event was not sent", {{"error", status}});
  }
}

void AgentLink::Log(std::string_view level, std::string_view text) {
  v1::TrainerEvent event;
  v1::LogLine& line = *event.mutable_log();
  const absl::Duration now = absl::Now() - absl::UnixEpoch();
  line.mutable_time()->set_seconds(absl::ToInt64Seconds(now));
  line.mutable_time()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(now) % 1'000'000'000));
  line.set_rank(rank_);
  line.set_level(std::string(level));
  line.set_text(ToValidUtf8(text));
  Send(event);
}

void AgentLink::ReadCommands() {
  while (true) {
    v1::TrainerCommand command;
    const absl::StatusOr<bool> more = ReadFrame(fd_, &command);
    if (!more.ok() || !*more) {
      Lost();
      return;
    }
    Obey(command);
  }
}

void AgentLink::Obey(const v1::TrainerCommand& command) {
  switch (command.command_case()) {
    case v1::TrainerCommand::kStart: {
      MutexLock lock(&mu_);
      start_ = command.start();
      changed_.SignalAll();
      return;
    }
    case v1::TrainerCommand::kSaveNow:
      save_.store(true);
      return;
    case v1::TrainerCommand::kStop:
      RequestStop();
      return;
    case v1::TrainerCommand::kStageTaken:
      if (on_stage_taken_) on_stage_taken_(command.stage_taken().step());
      return;
    case v1::TrainerCommand::kTask:
    case v1::TrainerCommand::COMMAND_NOT_SET:
      LogWarning("an unexpected command was ignored");
      return;
  }
}

void AgentLink::Lost() {
  if (finished_.load()) return;
  {
    MutexLock lock(&mu_);
    lost_ = true;
    changed_.SignalAll();
  }
  on_lost_();
}

}  // namespace qlora::trainer
