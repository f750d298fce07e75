#include "server/core/state.h"

#include <set>

namespace qlora::server {

Job& Draft::ChangeJob(const std::string& job_id) {
  const auto before = jobs.changes().find(job_id);
  const bool first = before == jobs.changes().end() || !before->second;
  Job& job = *jobs.Mutable(job_id);
  if (first) {
    job.mutable_job().set_revision(job.job().revision() + 1);
    Emit(JobChanged{job_id});
  }
  return job;
}

uint64_t Draft::Send(const std::string& node,
                     qlora::v1::WorkerCommand command) {
  NodeRecord& record = nodes.Mutable(node)->record;
  record.set_last_command(record.last_command() + 1);
  command.set_number(record.last_command());
  command.set_term(state.term);
  commands.emplace_back(node, std::make_shared<const qlora::v1::WorkerCommand>(
                                  std::move(command)));
  Emit(CommandsReady{node});
  return record.last_command();
}

void Draft::Tell(const std::string& job_id, std::string_view type,
                 std::string_view message, int32_t attempt) {
  qlora::v1::JobEvent event;
  *event.mutable_time() = ToProto(now);
  event.set_type(std::string(type));
  event.set_message(std::string(message));
  event.set_attempt(attempt);
  Emit(AppendEvent{job_id, std::move(event)});
}

void Draft::ApplyTo(State& target) && {
  std::move(jobs).ApplyTo(target.jobs);
  std::move(attempts).ApplyTo(target.attempts);
  for (const auto& [name, node] : nodes.changes()) {
    if (!node) target.outbox.erase(name);
  }
  std::move(nodes).ApplyTo(target.nodes);
  std::move(checkpoints).ApplyTo(target.checkpoints);
  std::move(models).ApplyTo(target.models);
  std::move(datasets).ApplyTo(target.datasets);
  for (auto& [node, command] : commands) {
    target.outbox[node].push_back(std::move(command));
  }
}

bool Draft::empty() const {
  return jobs.changes().empty() && attempts.changes().empty() &&
         nodes.changes().empty() && checkpoints.changes().empty() &&
         models.changes().empty() && datasets.changes().empty() &&
         commands.empty();
}

bool IsTerminal(qlora::v1::JobState state) {
  return state == qlora::v1::JOB_STATE_SUCCEEDED ||
         state == qlora::v1::JOB_STATE_FAILED ||
         state == qlora::v1::JOB_STATE_CANCELLED;
}

bool IsTerminal(AttemptState state) { return state >= ATTEMPT_STATE_SUCCEEDED; }

google::protobuf::Timestamp ToProto(absl::Time time) {
  google::protobuf::Timestamp result;
  const int64_t seconds = absl::ToUnixSeconds(time);
  result.set_seconds(seconds);
  result.set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
  return result;
}

absl::Time FromProto(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) +
         absl::Nanoseconds(time.nanos());
}

std::string ShortName(qlora::v1::JobState state) {
  return qlora::v1::JobState_Name(state).substr(sizeof("JOB_STATE_") - 1);
}
std::string ShortName(qlora::v1::FailureClass failure_class) {
  return qlora::v1::FailureClass_Name(failure_class)
      .substr(sizeof("FAILURE_CLASS_") - 1);
}
std::string ShortName(qlora::v1::NodeState state) {
  return qlora::v1::NodeState_Name(state).substr(sizeof("NODE_STATE_") - 1);
}

}  // namespace qlora::server
