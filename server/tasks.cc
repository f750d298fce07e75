#include "server/tasks.h"

#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "server/core/scheduler.h"

namespace qlora::server {
namespace {

std::string NewTaskId() {
  std::random_device random;
  return absl::StrCat("t-", absl::Hex(random(), absl::kZeroPad8),
                      absl::Hex(random(), absl::kZeroPad8));
}

absl::Status TaskError(const qlora::v1::TaskOutput& output) {
  if (output.error().empty() &&
      output.failure_class() == qlora::v1::FAILURE_CLASS_UNSPECIFIED) {
    return absl::OkStatus();
  }
  switch (output.failure_class()) {
    case qlora::v1::FAILURE_CLASS_USER:
      return absl::InvalidArgumentError(output.error());
    case qlora::v1::FAILURE_CLASS_OOM:
    case qlora::v1::FAILURE_CLASS_DISK:
      return absl::ResourceExhaustedError(output.error());
    case qlora::v1::FAILURE_CLASS_INFRA:
    case qlora::v1::FAILURE_CLASS_DRAINED:
      return absl::UnavailableError(output.error());
    default:
      return absl::InternalError(output.error());
  }
}

}  // namespace

absl::StatusOr<std::string> Tasks::Start(qlora::v1::RunTask task,
                                         Callbacks callbacks) {
  absl::StatusOr<std::string> node;
  coordinator_->Read(
      [&](const State& state) { node = NodeForTask(state, task.model()); });
  RETURN_IF_ERROR(node.status());
  const std::string id = NewTaskId();
  task.set_task_id(id);
  {
    MutexLock lock(&mu_);
    tasks_[id] = std::make_shared<Task>(*node, std::move(callbacks));
  }
  qlora::v1::WorkerCommand command;
  *command.mutable_run_task() = std::move(task);
  const absl::Status sent =
      coordinator_->SendCommand(*node, std::move(command));
  // Unless its node went meanwhile, and on_done has said so.
  if (!sent.ok() && Take(id) != nullptr) return sent;
  return id;
}

std::shared_ptr<Tasks::Task> Tasks::Take(const std::string& task_id) {
  std::shared_ptr<Task> task;
  {
    MutexLock lock(&mu_);
    const auto it = tasks_.find(task_id);
    if (it == tasks_.end()) return nullptr;
    task = std::move(it->second);
    tasks_.erase(it);
  }
  MutexLock lock(&task->mu);
  task->done = true;
  return task;
}

void Tasks::Cancel(const std::string& task_id) {
  const auto task = Take(task_id);
  if (task == nullptr) return;
  qlora::v1::WorkerCommand command;
  command.mutable_cancel_task()->set_task_id(task_id);
  // If it cannot be sent the worker ends the task by itself.
  (void)coordinator_->SendCommand(task->node, std::move(command));
  task->callbacks.on_done(absl::CancelledError("the caller went away"));
}

void Tasks::OnOutput(const qlora::v1::TaskOutput& output) {
  std::shared_ptr<Task> task;
  {
    MutexLock lock(&mu_);
    const auto it = tasks_.find(output.task_id());
    if (it == tasks_.end()) return;
    task = it->second;
  }
  if (output.has_event()) {
    // Once on_done was called, what on_event fills may be gone.
    MutexLock lock(&task->mu);
    if (!task->done) task->callbacks.on_event(output.event());
  }
  if (output.done() && Take(output.task_id()) != nullptr) {
    task->callbacks.on_done(TaskError(output));
  }
}

void Tasks::OnNodeGone(const std::string& node, const std::string& why) {
  std::vector<std::string> gone;
  {
    MutexLock lock(&mu_);
    for (const auto& [id, task] : tasks_) {
      if (task->node == node) gone.push_back(id);
    }
  }
  for (const std::string& id : gone) {
    const auto task = Take(id);
    if (task == nullptr) continue;
    qlora::v1::WorkerCommand command;
    command.mutable_cancel_task()->set_task_id(id);
    (void)coordinator_->SendCommand(node, std::move(command));
    task->callbacks.on_done(absl::UnavailableError(why));
  }
}

}  // namespace qlora::server
