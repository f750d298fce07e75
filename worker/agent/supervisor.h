// Obeys the coordinator: keeps the attempts and tasks of this node. The public
// methods may be called from any thread; they return at once and the work is
// done on the event loop.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/base/mutex.h"
#include "google/protobuf/repeated_field.h"
#include "qlora/v1/worker.pb.h"
#include "worker/agent/attempt.h"
#include "worker/agent/environment.h"
#include "worker/agent/task.h"

namespace qlora::agent {

class Supervisor {
 public:
  // Takes over the attempts that a previous run left, and deletes its tasks.
  // The environment must outlive this. Destroy it after the loop has ended.
  explicit Supervisor(Environment environment);
  ~Supervisor();

  // One that was handled before must not come again.
  void Handle(v1::WorkerCommand command);
  // What a Welcome says about the inventory.
  void Decide(google::protobuf::RepeatedPtrField<v1::Decision> decisions);
  // Without a coordinator for too long, ranks save and leave.
  void SetConnected(bool connected);

  // Attempts that have not ended, as of now.
  std::vector<v1::AttemptInventory> Inventory() const;

  // Refuses new work, asks ranks to save and leave, kills them after `grace`,
  // and calls `done` on the loop when none is left and what they staged is
  // uploaded. While the coordinator is away, uploads are left to the next run.
  void Drain(absl::Duration grace, std::function<void()> done);

 private:
  // (job, attempt)
  using Key = std::pair<std::string, int32_t>;

  void Obey(const v1::WorkerCommand& command);
  void Prepare(const v1::PrepareAttempt& command, int64_t term);
  void Stop(const v1::StopAttempt& command, int64_t term);
  void RunTask(const v1::RunTask& command, int64_t term);
  void TakeOver();
  // A new attempt, which tells of its changes here.
  Attempt& Add(const v1::PrepareAttempt& command, int64_t term);
  bool Drained() const;
  void StopAll(absl::Duration grace, const AgentCause& cause);
  // Forgets what has ended, later: callers may be inside of it.
  void Sweep();
  void UpdateInventory();
  // Says AttemptEnded for one that does not live here.
  void EmitEnded(const Key& key, int64_t term, const AgentCause& cause);

  Environment environment_;
  std::map<Key, std::shared_ptr<Attempt>> attempts_;
  std::map<std::string, std::shared_ptr<Task>> tasks_;
  bool sweeping_ = false;
  uint64_t alone_timer_ = 0;
  bool connected_ = false;
  bool draining_ = false;
  std::function<void()> on_drained_;

  mutable Mutex mu_;
  std::vector<v1::AttemptInventory> inventory_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::agent
