// Performs the coordinator's effects on what stands around it.
#pragma once

#include "server/coordinator.h"
#include "server/notifier.h"
#include "server/services/worker_service.h"
#include "server/store/job_log.h"
#include "server/tasks.h"
#include "server/telemetry.h"

namespace qlora::server {

class Effects : public EffectSink {
 public:
  // All must outlive it.
  Effects(JobLog* log, Notifier* notifier, Telemetry* telemetry,
          WorkerStreams* streams)
      : log_(log),
        notifier_(notifier),
        telemetry_(telemetry),
        streams_(streams) {}
  // Before the first node connects.
  void set_tasks(Tasks* tasks) { tasks_ = tasks; }

  void Perform(const Effect& effect) override;
  void OnSchedulerPass(absl::Duration duration) override {
    telemetry_->ObserveSchedulerPass(duration);
  }

 private:
  void Do(const CommandsReady& e) { streams_->WakeCommands(e.node); }
  void Do(const EventsStored& e) { streams_->AckEvents(e.node, e.number); }
  void Do(const CloseStream& e) { streams_->Close(e.node, e.stream, e.status); }
  void Do(const JobChanged& e) { notifier_->Notify(e.job_id); }
  void Do(const AppendEvent& e);
  void Do(const JobRemoved& e);
  void Do(const NodeGone& e) {
    if (tasks_ != nullptr) tasks_->OnNodeGone(e.node, e.why);
  }
  void Do(const JobFinished& e) { telemetry_->Count(e); }
  void Do(const JobStarted& e) { telemetry_->Count(e); }
  void Do(const JobRestarted& e) { telemetry_->Count(e); }
  void Do(const CheckpointCommitted& e) { telemetry_->Count(e); }

  JobLog* const log_;
  Notifier* const notifier_;
  Telemetry* const telemetry_;
  WorkerStreams* const streams_;
  Tasks* tasks_ = nullptr;
};

}  // namespace qlora::server
