// Short tasks on workers: plan, generate, verify. Not stored: a task ends with
// its caller, its node's connection or this process. Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/base/mutex.h"
#include "qlora/v1/worker.pb.h"
#include "server/coordinator.h"

namespace qlora::server {

class Tasks {
 public:
  // For one task by one thread at a time.
  struct Callbacks {
    // Under a lock of the task: it must not call this class.
    std::function<void(const qlora::v1::TrainerEvent&)> on_event;
    // The last call, exactly once for each task that was started; no on_event
    // runs or comes any more. Without locks.
    std::function<void(const absl::Status&)> on_done;
  };

  explicit Tasks(Coordinator* coordinator) : coordinator_(coordinator) {}

  // Gives the task to a ready node and returns its id. Unavailable if there is
  // none; callbacks are not called then.
  absl::StatusOr<std::string> Start(qlora::v1::RunTask task,
                                    Callbacks callbacks);
  // Ends it with Cancelled; no-op when it has ended.
  void Cancel(const std::string& task_id);

  // What workers report.
  void OnOutput(const qlora::v1::TaskOutput& output);
  void OnNodeGone(const std::string& node, const std::string& why);

 private:
  struct Task {
    Task(std::string n, Callbacks c)
        : node(std::move(n)), callbacks(std::move(c)) {}
    const std::string node;
    const Callbacks callbacks;
    // Held around on_event.
    Mutex mu;
    bool done ABSL_GUARDED_BY(mu) = false;
  };
  // Removes the task, once its on_event has returned. Null if it has ended.
  std::shared_ptr<Task> Take(const std::string& task_id);

  Coordinator* const coordinator_;
  Mutex mu_;
  std::map<std::string, std::shared_ptr<Task>> tasks_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::server
