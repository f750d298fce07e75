// Runs the ranks of a task without an agent, on this machine: for tests and
// benchmarks. The methods of a Gang may be called from any thread.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/mutex.h"
#include "qlora/v1/trainer.pb.h"

namespace qlora::trainer {

struct RankOutcome {
  // In the order of arrival.
  std::vector<v1::TrainerEvent> events;
  // Exit code, or 128 + the signal that killed it.
  int exit_code = -1;
};

class Gang {
 public:
  // Called for each event by the thread that reads this rank's socket.
  using OnEvent = std::function<void(Gang&, int rank, const v1::TrainerEvent&)>;
  using AdjustTask = std::function<void(v1::TrainerTask&)>;

  // Starts `world_size` processes of `program` (qlora-trainer), each with the
  // task and its own rank, and hands out the rendezvous when all are ready.
  // `adjust` may change a rank's task, as if it ran on another node. Ranks'
  // standard error goes to this process's.
  static absl::StatusOr<std::unique_ptr<Gang>> Start(
      const std::string& program, const v1::TrainerTask& task,
      OnEvent on_event = nullptr, const AdjustTask& adjust = nullptr);
  // Kills what still runs.
  ~Gang();

  void Send(int rank, const v1::TrainerCommand& command);
  void Signal(int rank, int signal);
  // As if the agent of this rank had died.
  void Abandon(int rank);
  // Blocks until every rank has ended.
  std::vector<RankOutcome> Wait();

 private:
  struct Rank {
    pid_t pid = -1;
    int fd = -1;
    RankOutcome outcome;
    std::thread reader;
  };

  Gang() = default;
  absl::Status Spawn(const std::string& program, const v1::TrainerTask& task,
                     int listen_fd);
  void ReadEvents(int rank);
  void CountReady();

  OnEvent on_event_;
  std::string address_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  Mutex mu_;
  size_t ready_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace qlora::trainer
