// Events on their way to the coordinator: numbered, stored, then sent.
// Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "qlora/v1/worker.pb.h"
#include "worker/agent/spool.h"

namespace qlora::agent {

class Outbox {
 public:
  // Reads the spool for attempts whose end is still to be acknowledged. Errors
  // as Spool::Open. The clock must outlive this.
  static absl::StatusOr<std::unique_ptr<Outbox>> Open(SpoolOptions options,
                                                      const Clock* clock);

  // Called after each event, and once with the error when an event that must
  // not be lost could not be stored. Set before the first Emit.
  void OnEmit(std::function<void()> callback) {
    on_emit_ = std::move(callback);
  }
  void OnFailure(std::function<void(absl::Status)> callback) {
    on_failure_ = std::move(callback);
  }

  // Stores the event; metrics, logs and task output may be dropped later. One
  // that is larger than a message may be is not stored: an error in the log.
  void Emit(v1::WorkerEvent event);

  // The event of that number, empty but for it if it was dropped. OutOfRange
  // beyond the newest.
  absl::StatusOr<v1::WorkerEvent> Read(uint64_t number) const;
  void Acknowledge(uint64_t number);
  // The coordinator's Welcome.resend_from: everything before is stored there.
  // Returns the number to send first.
  absl::StatusOr<uint64_t> ResendFrom(uint64_t number);

  // Attempts that ended, as far as this node goes, and whose AttemptEnded waits
  // here.
  std::vector<v1::AttemptInventory> UnacknowledgedEnds() const;
  bool AllAcknowledged() const { return spool_->first() == spool_->next(); }

  const Spool& spool() const { return *spool_; }

 private:
  Outbox(std::unique_ptr<Spool> spool, const Clock* clock)
      : spool_(std::move(spool)), clock_(clock) {}
  void NoteEndLocked(uint64_t number, const v1::WorkerEvent& event)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::unique_ptr<Spool> spool_;
  const Clock* const clock_;
  std::function<void()> on_emit_;
  std::function<void(absl::Status)> on_failure_;

  mutable Mutex mu_;
  // By the number of their AttemptEnded.
  std::map<uint64_t, v1::AttemptInventory> ends_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::agent
