#include "server/effects.h"

#include "common/base/log.h"

namespace qlora::server {

void Effects::Perform(const Effect& effect) {
  std::visit([this](const auto& e) { Do(e); }, effect);
}

void Effects::Do(const AppendEvent& e) {
  LogInfo(e.event.type(), {{"job", e.job_id},
                           {"attempt", e.event.attempt()},
                           {"message", e.event.message()}});
  const absl::Status status = log_->Append(e.job_id, LogKind::kEvents, e.event);
  if (!status.ok()) {
    LogWarning("event not recorded", {{"job", e.job_id}, {"error", status}});
  }
  notifier_->Notify(e.job_id);
}

void Effects::Do(const JobRemoved& e) {
  log_->Remove(e.job_id);
  telemetry_->Forget(e.job_id);
  notifier_->Notify(e.job_id);
}

}  // namespace qlora::server
