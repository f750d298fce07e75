// A RunTask: one trainer process that plans, generates or evaluates, and its
// output. Used on the event loop's thread only.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "qlora/v1/worker.pb.h"
#include "worker/agent/environment.h"
#include "worker/agent/rank_process.h"
#include "worker/agent/transfer_queue.h"

namespace qlora::agent {

class Task : public std::enable_shared_from_this<Task> {
 public:
  // on_change: ended() or settled() became true.
  Task(Environment& environment, v1::RunTask command, int64_t term,
       std::function<void()> on_change);
  ~Task();

  // Call once, after construction.
  void Run();
  // Kills the process; the task ends with an error.
  void Cancel();

  // It has ended and no transfer runs any more: destruction does not wait for
  // one.
  bool settled() const { return ended_ && transfers_->stopped(); }
  const std::string& id() const { return command_.task_id(); }

 private:
  void OnFetched(absl::StatusOr<LocalInputs> inputs);
  void Spawn();
  void OnEvent(v1::TrainerEvent event);
  void OnProcessEnd();
  void Finish(const std::string& error, v1::FailureClass failure_class);
  void Emit(v1::TaskOutput output);

  Environment& environment_;
  const v1::RunTask command_;
  const int64_t term_;
  const std::function<void()> on_change_;
  const std::string directory_;

  bool ended_ = false;
  bool cancelled_ = false;
  LocalInputs inputs_;
  // What it printed last, for a failure without a message.
  std::string last_line_;
  std::unique_ptr<RankProcess> process_;
  // From Run on. Last: its work uses what is above.
  std::unique_ptr<TransferQueue> transfers_;
};

}  // namespace qlora::agent
