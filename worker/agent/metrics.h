// What the worker exports on /metrics (docs/metrics.md); the training curves
// are the coordinator's. Thread-safe.
//
// The series of a job stay for five minutes after its attempt ended, so that a
// scrape sees the last values.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <string>

#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "qlora/v1/worker.pb.h"

namespace qlora::agent {

class AgentMetrics {
 public:
  // The clock must outlive this.
  explicit AgentMetrics(const Clock* clock);
  AgentMetrics(const AgentMetrics&) = delete;
  AgentMetrics& operator=(const AgentMetrics&) = delete;

  void Step(const std::string& job_id, const v1::MetricPoint& point);
  // The files of a checkpoint were uploaded.
  void CheckpointUploaded(const v1::RankStaged& staged, absl::Duration took);
  void AttemptEnded(const std::string& job_id, const v1::AttemptEnded& ended);
  void SetConnected(bool connected) { connected_->Set(connected ? 1 : 0); }
  void SetRanks(int running) { ranks_->Set(running); }
  void SetSpool(int64_t bytes, uint64_t events, uint64_t dropped);

  // Prometheus text format.
  std::string Text();

 private:
  struct JobSeries {
    double peak_bytes = 0;
    double planned_bytes = 0;
    double gathered_bytes = 0;
    double broadcast_bytes = 0;
    absl::Time until = absl::InfiniteFuture();
  };

  const Clock* const clock_;
  prometheus::Registry registry_;
  prometheus::Gauge* connected_;
  prometheus::Gauge* ranks_;
  prometheus::Gauge* spool_bytes_;
  prometheus::Gauge* spool_events_;
  prometheus::Counter* dropped_;
  prometheus::Counter* ooms_;
  prometheus::Family<prometheus::Counter>* rank_ends_;
  prometheus::Counter* uploaded_bytes_;
  prometheus::Histogram* upload_seconds_;

  Mutex mu_;
  std::map<std::string, JobSeries> jobs_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::agent
