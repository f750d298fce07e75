#include "worker/agent/outbox.h"

#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace qlora::agent {
namespace {

Spool::Kind KindOf(const v1::WorkerEvent& event) {
  const bool droppable =
      event.has_metrics() || event.has_log() ||
      (event.has_task_output() && !event.task_output().done());
  return droppable ? Spool::Kind::kDroppable : Spool::Kind::kState;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Outbox>> Outbox::Open(SpoolOptions options,
                                                     const Clock* clock) {
  ASSIGN_OR_RETURN(auto spool, Spool::Open(std::move(options)));
  std::unique_ptr<Outbox> outbox(new Outbox(std::move(spool), clock));
  MutexLock lock(&outbox->mu_);
  const Spool& records = *outbox->spool_;
  for (uint64_t number = records.first(); number < records.next(); ++number) {
    ASSIGN_OR_RETURN(const v1::WorkerEvent event, outbox->Read(number));
    outbox->NoteEndLocked(number, event);
  }
  return outbox;
}

void Outbox::Emit(v1::WorkerEvent event) {
  const absl::Time now = clock_->Now();
  event.mutable_time()->set_seconds(absl::ToUnixSeconds(now));
  event.mutable_time()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(
      now - absl::FromUnixSeconds(absl::ToUnixSeconds(now)))));
  const Spool::Kind kind = KindOf(event);
  absl::StatusOr<uint64_t> number;
  {
    MutexLock lock(&mu_);
    number = spool_->Append(kind, event.SerializeAsString());
    if (number.ok()) NoteEndLocked(*number, event);
  }
  if (number.ok()) {
    if (on_emit_) on_emit_();
  } else if (absl::IsInvalidArgument(number.status())) {
    // The spool goes on, and so must the node.
    LogError("event is lost", {{"attempt", event.attempt()},
                               {"job", event.job_id()},
                               {"error", number.status()}});
  } else if (kind == Spool::Kind::kState) {
    if (on_failure_) on_failure_(number.status());
  } else {
    LogDebug("event dropped", {{"error", number.status()}});
  }
}

absl::StatusOr<v1::WorkerEvent> Outbox::Read(uint64_t number) const {
  ASSIGN_OR_RETURN(const Spool::Record record, spool_->Read(number));
  v1::WorkerEvent event;
  if (!event.ParseFromString(record.payload)) {
    LogWarning("event cannot be read back", {{"number", number}});
    event.Clear();
  }
  event.set_number(number);
  return event;
}

void Outbox::Acknowledge(uint64_t number) {
  MutexLock lock(&mu_);
  ends_.erase(ends_.begin(), ends_.upper_bound(number));
  spool_->Acknowledge(number);
}

absl::StatusOr<uint64_t> Outbox::ResendFrom(uint64_t number) {
  if (number > 1) Acknowledge(number - 1);
  RETURN_IF_ERROR(spool_->SkipTo(number));
  return spool_->first();
}

std::vector<v1::AttemptInventory> Outbox::UnacknowledgedEnds() const {
  MutexLock lock(&mu_);
  std::vector<v1::AttemptInventory> ends;
  for (const auto& [number, inventory] : ends_) ends.push_back(inventory);
  return ends;
}

void Outbox::NoteEndLocked(uint64_t number, const v1::WorkerEvent& event) {
  if (!event.has_ended()) return;
  v1::AttemptInventory& inventory = ends_[number];
  inventory.set_job_id(event.job_id());
  inventory.set_attempt(event.attempt());
  inventory.set_term(event.term());
}

}  // namespace qlora::agent
