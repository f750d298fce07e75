// The ranks of one attempt on this node. Used on the event loop's thread only.
//
//   kFetching -> kSpawning -> kReady -> kStarted -> kRunning -> kEnded
//       |            |          |          |          ^  |         ^
//       +------------+----------+----------+----------|--+---------+
//                                              kLeft -+
//
// kFetching: inputs come. kSpawning: ranks start. kReady: Prepared was sent;
// waits for Start. kStarted: ranks connect and load. kRunning: every local
// rank passed the barrier. The attempt is kEnded, and says AttemptEnded, when
// every rank has ended and every staged checkpoint is uploaded or given up.
//
// Destroyed before that, at the agent's end, it leaves its directory with a
// record of what is still to be uploaded and said. kLeft: the agent's next run
// has taken that over and waits for the coordinator's word.
//
// Held: the coordinator's database does not know it (an older copy was
// restored). It is then as if there were no coordinator: ranks go on for
// RankTimeouts.alone, save and leave; nothing is uploaded; what is left waits
// for RankTimeouts.kept and is given up. An upload that was on its way stays to
// be handed in, and so does what ranks other than 0 say of the checkpoints that
// they stage meanwhile, wherever rank 0 is.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "qlora/v1/worker.pb.h"
#include "worker/agent/attempt_record.h"
#include "worker/agent/environment.h"
#include "worker/agent/log_budget.h"
#include "worker/agent/outcome.h"
#include "worker/agent/progress_watch.h"
#include "worker/agent/rank_process.h"
#include "worker/agent/transfer_queue.h"

namespace qlora::agent {

class Attempt : public std::enable_shared_from_this<Attempt> {
 public:
  // on_change: inventory() may differ, or ended() or settled() became true.
  Attempt(Environment& environment, v1::PrepareAttempt command, int64_t term,
          std::function<void()> on_change);
  ~Attempt();

  // Call one of these once, after construction. TakeOver: what a former run of
  // the agent left; the command names the attempt and no ranks.
  void Prepare();
  void TakeOver(const AttemptRecord& record);
  // The coordinator knows it, and still wants what was left.
  void GoOn();
  // The coordinator does not know it. Until GoOn or Stop it is held.
  void Hold();
  void Start(const v1::StartAttempt& command);
  // Asks running ranks to save and leave, and kills them after `grace`; ranks
  // that do not run yet, or save = false: kills at once. `cause` is what
  // AttemptEnded says unless training was complete.
  void Stop(bool save, absl::Duration grace, AgentCause cause);

  bool ended() const { return phase_ == Phase::kEnded; }
  // It has ended and no transfer runs any more: destruction does not wait for
  // one.
  bool settled() const { return ended() && transfers_->stopped(); }
  bool left() const { return phase_ == Phase::kLeft; }
  bool held() const { return held_; }
  // No rank lives, and only what the next run can hand in is left.
  bool resting() const {
    return left() ||
           (phase_ >= Phase::kSpawning && !ended() && AllEnded() && HasLeft());
  }
  const v1::PrepareAttempt& command() const { return command_; }
  v1::AttemptInventory inventory() const;

 private:
  enum class Phase {
    kLeft,
    kFetching,
    kSpawning,
    kReady,
    kStarted,
    kRunning,
    kEnded
  };

  void OnFetched(absl::StatusOr<LocalInputs> inputs);
  void SpawnRanks();
  void SpawnRank(const v1::RankAssignment& assignment, UniqueFd listener);
  void SendTask(RankProcess& rank, const v1::RankAssignment& assignment);
  void OnRankReady(int rank);
  void OnEvent(int rank, v1::TrainerEvent event);
  void OnLine(int rank, const std::string& line);
  // Leaves it out if there are too many; says so before the next one, or at the
  // rank's end before the last ones.
  void OnLog(int rank, v1::LogLine line);
  // Those of last_lines_, after a word of so many others.
  void EmitLines(int64_t left_out);
  void OnRankEnd(int rank);
  void OnStaged(int rank, const v1::StagedFiles& staged);
  // Why what a rank says that it has staged cannot be; empty if it can.
  std::string WrongAbout(int rank, const v1::StagedFiles& staged) const;
  // For GoOn to emit.
  void KeepShare(v1::RankStaged share);
  void EmitStaged(v1::RankStaged staged);
  void UploadNext();
  void OnUploaded(const v1::StagedFiles& staged,
                  absl::StatusOr<v1::RankStaged> event);
  void ReleaseStage(const v1::StagedFiles& staged);
  // Tells of the first one; the attempt's end tells of all.
  void CountSkipped(const v1::StagedFiles& staged, int64_t newer_step);
  // Tells of it; returns what was told.
  std::string EmitLost(const v1::StagedFiles& staged, const std::string& why);
  // An event of the job.
  void EmitNotice(const std::string& type, const std::string& message);
  void KillRanks();
  void Watch();
  std::optional<std::string> Overdue() const;
  // Ranks here that a signal has stopped (SIGSTOP), for messages.
  std::vector<std::string> StoppedRanks() const;
  // Whose word tells whether the gang moves: rank 0's where it is, else any.
  bool IsWatched(int rank) const { return rank == 0 || !has_rank_0_; }
  bool AllEnded() const;
  // To be handed in.
  bool HasLeft() const { return !uploads_.empty() || !shares_.empty(); }
  // Ranks have been held for long enough, or there are none: they leave, and
  // what they left is kept for its time.
  void KeepHeld();
  void MaybeEnd();
  v1::AttemptEnded Outcome() const;
  void StartTransfers();
  // Writes the record. If that fails, the attempt does not outlast the agent.
  void Remember() const;
  void Emit(v1::WorkerEvent event);
  RankProcess* FindRank(int rank);
  const v1::Device* DeviceOf(const v1::RankAssignment& assignment) const;
  std::string WorkDirectory() const { return directory_ + "/work"; }

  Environment& environment_;
  const v1::PrepareAttempt command_;
  const int64_t term_;
  const std::function<void()> on_change_;
  const std::string name_;
  const std::string directory_;
  const bool has_rank_0_;

  Phase phase_ = Phase::kFetching;
  LocalInputs inputs_;
  std::string rendezvous_address_;
  std::vector<std::unique_ptr<RankProcess>> ranks_;
  std::set<int> ready_;
  std::set<int> running_;
  v1::Running running_report_;
  // In the order of the exits.
  std::vector<RankEnd> ends_;
  std::optional<AgentCause> cause_;
  // How it ended in a former run.
  std::optional<v1::AttemptEnded> former_end_;
  // Staged by rank 0, the front one being uploaded.
  std::deque<v1::StagedFiles> uploads_;
  bool uploading_ = false;
  // What ranks other than 0 have staged while held, oldest first.
  std::deque<v1::RankStaged> shares_;
  // Checkpoints that a newer one replaced before they could be uploaded.
  int skipped_ = 0;
  // Stopped without saving: what ranks stage from now on is left alone.
  bool abandoned_ = false;
  bool held_ = false;
  int64_t last_step_ = 0;
  LogBudget log_budget_;
  // The newest of the lines that did not pass since one did.
  std::deque<v1::LogLine> last_lines_;
  int warnings_ = 0;
  ProgressWatch progress_;
  absl::Time watched_at_;
  // How long some rank here has been stopped.
  absl::Duration stopped_;
  uint64_t kill_timer_ = 0;
  uint64_t watch_timer_ = 0;
  // Set while held.
  uint64_t hold_timer_ = 0;
  // Set in kReady.
  uint64_t start_timer_ = 0;
  // From Prepare on. Last: its work uses what is above.
  std::unique_ptr<TransferQueue> transfers_;
};

}  // namespace qlora::agent
