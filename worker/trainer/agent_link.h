// A rank's end of the socket to its agent (worker/frames, trainer.proto).
//
// One thread of its own reads commands. Send may be called from any thread, the
// rest from one. When the agent is gone, on_lost is called from either thread;
// in production it ends the process.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"
#include "qlora/v1/trainer.pb.h"

namespace qlora::trainer {

class AgentLink {
 public:
  // Does not own fd.
  AgentLink(int fd, std::function<void()> on_lost);
  ~AgentLink();

  // Blocks for the first command. InvalidArgument if it is no task. Then the
  // reader starts.
  absl::StatusOr<v1::TrainerTask> ReadTask();
  // Blocks until TrainerStart came; Cancelled if told to stop meanwhile.
  absl::StatusOr<v1::TrainerStart> WaitForStart();

  // After a result or a failure a closed socket is no loss any more. Of a long
  // failure's message or log line the middle is left out: a frame has a bound.
  void Send(v1::TrainerEvent event);
  void Log(std::string_view level, std::string_view text);

  // Asked to save and leave; also set by RequestStop.
  bool stop_requested() const { return stop_.load(); }
  // Async-signal-safe.
  void RequestStop() { stop_.store(true); }
  // Whether a checkpoint was asked for since the last call.
  bool TakeSaveRequest() { return save_.exchange(false); }
  // Called by the reader for each StageTaken; set before ReadTask.
  void set_on_stage_taken(std::function<void(int64_t step)> f) {
    on_stage_taken_ = std::move(f);
  }
  void set_rank(int rank) { rank_ = rank; }

 private:
  void ReadCommands();
  void Obey(const v1::TrainerCommand& command);
  void Lost();

  const int fd_;
  const std::function<void()> on_lost_;
  std::function<void(int64_t)> on_stage_taken_;
  int rank_ = 0;
  std::atomic<bool> stop_ = false;
  std::atomic<bool> save_ = false;
  std::atomic<bool> finished_ = false;

  Mutex write_mu_;

  Mutex mu_;
  CondVar changed_;
  std::optional<v1::TrainerStart> start_ ABSL_GUARDED_BY(mu_);
  bool lost_ ABSL_GUARDED_BY(mu_) = false;

  // Last: joined first.
  std::thread reader_;
};

}  // namespace qlora::trainer
