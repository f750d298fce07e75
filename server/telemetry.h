// What /metrics of the coordinator serves, and the progress of jobs: both are
// made of the metric points that ranks send. Thread-safe.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "server/core/state.h"
#include "server/store/job_log.h"

namespace qlora::server {

class Telemetry {
 public:
  // log: where the points of jobs before this start are. Both must outlive it.
  Telemetry(const JobLog* log, Clock* clock);

  // Takes a point in. False if the job has had that step in that attempt, or
  // in a later one: it must not be recorded again.
  bool OnPoint(const std::string& job_id, const qlora::v1::MetricPoint& point);
  // Progress as of the newest point.
  qlora::v1::JobProgress Progress(const std::string& job_id);
  // Its series leave after kKeepSeries.
  void OnJobEnded(const std::string& job_id);
  void Forget(const std::string& job_id);

  void CountSubmitted() { submitted_->Increment(); }
  void Count(const JobFinished& finished);
  void Count(const JobStarted& started);
  void Count(const JobRestarted& restarted);
  void Count(const CheckpointCommitted& committed);
  void ObserveSchedulerPass(absl::Duration duration);
  void CountRpc(const std::string& service, const std::string& method,
                const std::string& code, absl::Duration duration);

  // Prometheus text. state_families: what follows from the present state.
  std::string Text(std::vector<prometheus::MetricFamily> state_families);

 private:
  struct Series {
    qlora::v1::MetricPoint last;
    double eval_loss = 0;
    bool has_eval_loss = false;
    // Of this job since the coordinator started.
    int64_t steps = 0;
    int64_t trained = 0, masked = 0, padding = 0;
    std::map<std::string, double> phase_seconds;
    // Exported until then.
    absl::Time until = absl::InfiniteFuture();
    double checkpoint_time = 0;
  };
  // From before this start: the end of the job's file says where it is.
  Series Recorded(const std::string& job_id) const;
  // Makes sure that there is a series. Without the lock: it may read a file.
  void Know(const std::string& job_id);
  std::vector<prometheus::MetricFamily> JobFamilies();

  // Constant after construction; self-synchronised.
  const JobLog* const log_;
  Clock* const clock_;
  prometheus::Registry registry_;
  prometheus::Counter* submitted_;
  prometheus::Family<prometheus::Counter>* finished_;
  prometheus::Family<prometheus::Counter>* restarts_;
  prometheus::Family<prometheus::Counter>* rpcs_;
  prometheus::Family<prometheus::Histogram>* rpc_seconds_;
  prometheus::Histogram* queue_wait_;
  prometheus::Histogram* job_duration_;
  prometheus::Histogram* scheduler_pass_;
  prometheus::Histogram* checkpoint_duration_;
  prometheus::Counter* checkpoint_bytes_;
  prometheus::Histogram* step_duration_;

  Mutex mu_;
  std::map<std::string, Series> series_ ABSL_GUARDED_BY(mu_);
};

// qlora_jobs, qlora_workers, qlora_devices and what else the state says.
std::vector<prometheus::MetricFamily> StateFamilies(const State& state);

}  // namespace qlora::server
