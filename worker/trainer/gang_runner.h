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

  // Starts `world_size` processes of `program` (qlora-trainer), each with the
  // task and its own rank, and hands out the rendezvous when all are ready.
  // Ranks' standard error goes to this process's.
  static absl::StatusOr<std::unique_ptr<Gang>> Start(
      const std::string& program, const v1::TrainerTask& task,
      OnEvent on_event = nullptr);
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
  absl::Status Spawn(const std::string& program, v1::TrainerTask task, int rank,
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
