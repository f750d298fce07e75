// The coordinator: the state of server/core behind one mutex. Every event that
// changes the state is one transaction of the store; the effects that it has
// are performed after the commit, outside the lock, in order.
//
// All methods may be called from any thread and block for a commit at most.
// Errors of every method that changes something: Unavailable when the database
// cannot be written or the coordinator drains, Aborted when another coordinator
// has taken the lead over it; nothing has changed then.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "server/core/state.h"
#include "server/store/store.h"

namespace qlora::server {

// Performs effects; called by one thread at a time, without the lock.
class EffectSink {
 public:
  virtual ~EffectSink() = default;
  virtual void Perform(const Effect& effect) = 0;
  // A pass of the scheduler took so long.
  virtual void OnSchedulerPass(absl::Duration duration) = 0;
};

struct JobFilter {
  std::string project;
  std::set<qlora::v1::JobState> states;
  std::map<std::string, std::string> labels;
};

// Where a job stands in the order of age: time of creation, id.
using JobAge = std::tuple<int64_t, int32_t, std::string>;
JobAge AgeOf(const qlora::v1::Job& job);

struct JobPage {
  std::vector<qlora::v1::Job> jobs;
  // There are older ones.
  bool more = false;
};

class Coordinator {
 public:
  // Takes the lead over the store. All pointers must outlive it.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Create(
      const Timings& timings, Store* store, EffectSink* sink, Clock* clock);

  // --- Users -------------------------------------------------------------

  // A mutating call: runs change once per request_id and returns what it gave
  // then. digest names the request: InvalidArgument if the id was used for
  // another one. change returns the serialized response.
  absl::StatusOr<std::string> Mutate(
      const std::string& request_id, const std::string& digest,
      const std::function<absl::StatusOr<std::string>(Draft&)>& change);

  // What the request id's first call gave, if there was one; errors as Mutate.
  absl::StatusOr<std::optional<std::string>> FindResult(
      const std::string& request_id, const std::string& digest);

  // By id, unique prefix, name or "@last"; hides what is being deleted.
  // NotFound; Aborted if a prefix is ambiguous.
  absl::StatusOr<Job> FindJob(const std::string& reference,
                              const std::string& project) const;
  // Newest first, those older than `after`; at most `limit`, and fewer if they
  // would make too large a message.
  JobPage ListJobs(const JobFilter& filter, const std::optional<JobAge>& after,
                   int limit) const;
  std::vector<qlora::v1::Node> ListNodes() const;

  // Reads the state under the lock: f must be quick and keep no reference.
  void Read(const std::function<void(const State&)>& f) const;

  // --- Workers -----------------------------------------------------------

  absl::StatusOr<qlora::v1::Welcome> Hello(const qlora::v1::Hello& hello,
                                           uint64_t stream);
  // These return Aborted if the stream was replaced or closed.
  absl::Status Heartbeat(const std::string& node, uint64_t stream,
                         const qlora::v1::Heartbeat& heartbeat);
  // Events of an attempt's life; drops what is stored already.
  absl::Status Event(const std::string& node, uint64_t stream,
                     const qlora::v1::WorkerEvent& event);
  // An event that changes no state (metrics, logs, task output). True if it is
  // new and the node's to report: its job and attempt exist. It counts as
  // stored, and is acknowledged, at the next Tick.
  absl::StatusOr<bool> AcceptEvent(const std::string& node, uint64_t stream,
                                   const qlora::v1::WorkerEvent& event);
  absl::Status AckCommands(const std::string& node, uint64_t stream,
                           uint64_t number);
  void Disconnect(const std::string& node, uint64_t stream);
  // The node's commands after that number, oldest first, at most `limit`.
  std::vector<Command> CommandsAfter(const std::string& node, uint64_t number,
                                     size_t limit) const;
  // Sends a command that belongs to no attempt. InvalidArgument: too large for
  // a message; Unavailable: a task for a node that takes none now.
  absl::Status SendCommand(const std::string& node,
                           qlora::v1::WorkerCommand command);

  // --- Time --------------------------------------------------------------

  // Leases, deadlines, backoffs, and what AcceptEvent and AckCommands left.
  absl::Status Tick();

  // From now on mutating user calls get Unavailable.
  void Drain() { draining_ = true; }
  // OK while it takes calls and can write its database.
  absl::Status CheckReady();

  const std::string& cluster_id() const { return cluster_id_; }
  // Grows when a worker has seen a newer one.
  int64_t term() const { return term_; }

 private:
  Coordinator(State state, Store* store, EffectSink* sink, Clock* clock);

  // Leases and waits are kept in the time that people read: where that jumped
  // they jump with it. They stand still while the database cannot be written.
  Draft NewDraft() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CommitLocked(Draft& draft,
                            std::optional<RequestResult> request = {})
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckStreamLocked(const std::string& node, uint64_t stream) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::optional<std::string>> FindResultLocked(
      const std::string& request_id, const std::string& digest)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The event is of an attempt that the node has, or had, a part in.
  bool HasPartLocked(const std::string& node,
                     const qlora::v1::WorkerEvent& event) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint64_t LastEventLocked(const std::string& node) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Goes on in a term that this node, which has seen that one, follows.
  absl::Status MatchTermLocked(const std::string& node, int64_t seen)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // f(draft), then commit, then effects.
  absl::Status Change(const std::function<absl::Status(Draft&)>& f);
  void PerformEffects();

  // Constant after construction.
  Store* const store_;
  EffectSink* const sink_;
  Clock* const clock_;
  std::string cluster_id_;

  std::atomic<int64_t> term_ = 0;
  std::atomic<bool> draining_ = false;

  mutable Mutex mu_;
  State state_ ABSL_GUARDED_BY(mu_);
  std::minstd_rand random_ ABSL_GUARDED_BY(mu_);
  // Of the newest draft, by the clock on the wall and by the one that is
  // steady.
  absl::Time last_now_ ABSL_GUARDED_BY(mu_);
  absl::Time last_steady_ ABSL_GUARDED_BY(mu_);
  // The newest attempt to write to the database succeeded.
  bool writable_ ABSL_GUARDED_BY(mu_) = true;
  // Taken in, not stored yet, by node.
  std::map<std::string, uint64_t> events_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, uint64_t> command_acks_ ABSL_GUARDED_BY(mu_);
  std::deque<Effect> effects_ ABSL_GUARDED_BY(mu_);
  // A pass of the scheduler was made over the loaded state.
  bool scheduled_ ABSL_GUARDED_BY(mu_) = false;
  // A thread performs effects.
  bool performing_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace qlora::server
