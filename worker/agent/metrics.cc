#include "worker/agent/metrics.h"

#include <prometheus/text_serializer.h>

#include <utility>
#include <vector>

#include "common/daemon/build_info.h"

namespace qlora::agent {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;

constexpr absl::Duration kKeepSeries = absl::Minutes(5);

template <typename Builder>
auto& AddMetric(Builder builder, prometheus::Registry& registry,
                const char* name, const char* help) {
  return builder.Name(name).Help(help).Register(registry);
}

MetricFamily Family(const char* name, const char* help,
                    prometheus::MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

std::string ExitReason(const v1::RankExit& exit) {
  if (exit.signal() != 0) return "signal";
  return exit.exit_code() == 0 ? "ok" : "error";
}

}  // namespace

AgentMetrics::AgentMetrics(const Clock* clock) : clock_(clock) {
  using prometheus::BuildCounter;
  using prometheus::BuildGauge;
  AddMetric(BuildGauge(), registry_, "qlora_build_info",
            "What this program was built from")
      .Add(BuildInfo())
      .Set(1);
  connected_ = &AddMetric(BuildGauge(), registry_, "qlora_worker_connected",
                          "1 while registered with the coordinator")
                    .Add({});
  ranks_ = &AddMetric(BuildGauge(), registry_, "qlora_worker_ranks",
                      "Ranks that run on this node")
                .Add({});
  spool_bytes_ = &AddMetric(BuildGauge(), registry_, "qlora_worker_spool_bytes",
                            "Size of the spool of events")
                      .Add({});
  spool_events_ =
      &AddMetric(BuildGauge(), registry_, "qlora_worker_spool_events",
                 "Events that the coordinator has not acknowledged")
           .Add({});
  dropped_ =
      &AddMetric(BuildCounter(), registry_, "qlora_worker_events_dropped_total",
                 "Metrics and log events dropped from a full spool")
           .Add({});
  ooms_ = &AddMetric(BuildCounter(), registry_, "qlora_device_ooms_total",
                     "Attempts that ended for want of memory")
               .Add({});
  rank_ends_ =
      &AddMetric(BuildCounter(), registry_, "qlora_worker_rank_exits_total",
                 "Ranks that ended on this node");
  for (const char* reason : {"ok", "error", "signal"}) {
    rank_ends_->Add({{"reason", reason}});
  }
  uploaded_bytes_ =
      &AddMetric(BuildCounter(), registry_, "qlora_worker_uploaded_bytes_total",
                 "Bytes of checkpoints and outputs uploaded")
           .Add({});
  upload_seconds_ =
      &AddMetric(prometheus::BuildHistogram(), registry_,
                 "qlora_worker_upload_duration_seconds",
                 "Time to upload a checkpoint")
           .Add({}, std::vector<double>{0.01, 0.1, 0.5, 1, 5, 15, 60, 300});
}

void AgentMetrics::Step(const std::string& job_id,
                        const v1::MetricPoint& point) {
  MutexLock lock(&mu_);
  JobSeries& series = jobs_[job_id];
  series.peak_bytes = static_cast<double>(point.memory_bytes());
  series.planned_bytes = static_cast<double>(point.planned_memory_bytes());
  series.gathered_bytes += static_cast<double>(point.gathered_block_bytes());
  series.broadcast_bytes += static_cast<double>(point.gathered_other_bytes());
  series.until = absl::InfiniteFuture();
}

void AgentMetrics::CheckpointUploaded(const v1::RankStaged& staged,
                                      absl::Duration took) {
  int64_t bytes = 0;
  for (const auto& file : staged.files()) bytes += file.size_bytes();
  for (const auto& file : staged.output()) bytes += file.size_bytes();
  uploaded_bytes_->Increment(static_cast<double>(bytes));
  upload_seconds_->Observe(absl::ToDoubleSeconds(took));
}

void AgentMetrics::AttemptEnded(const std::string& job_id,
                                const v1::AttemptEnded& ended) {
  for (const v1::RankExit& exit : ended.ranks()) {
    rank_ends_->Add({{"reason", ExitReason(exit)}}).Increment();
  }
  if (ended.failure_class() == v1::FAILURE_CLASS_OOM) ooms_->Increment();
  MutexLock lock(&mu_);
  const auto it = jobs_.find(job_id);
  if (it != jobs_.end()) it->second.until = clock_->Steady() + kKeepSeries;
}

void AgentMetrics::SetSpool(int64_t bytes, uint64_t events, uint64_t dropped) {
  spool_bytes_->Set(static_cast<double>(bytes));
  spool_events_->Set(static_cast<double>(events));
  dropped_->Increment(static_cast<double>(dropped) - dropped_->Value());
}

std::string AgentMetrics::Text() {
  std::vector<MetricFamily> families = registry_.Collect();
  MetricFamily memory =
      Family("qlora_device_memory_bytes", "Memory of the largest rank of a job",
             prometheus::MetricType::Gauge);
  MetricFamily collective =
      Family("qlora_collective_bytes_total",
             "Bytes of the frozen base that collectives gave one rank",
             prometheus::MetricType::Counter);
  {
    MutexLock lock(&mu_);
    const absl::Time now = clock_->Steady();
    std::erase_if(jobs_,
                  [now](const auto& job) { return job.second.until < now; });
    for (const auto& [id, series] : jobs_) {
      for (const auto& [kind, value] : {std::pair{"peak", series.peak_bytes},
                                        {"planned", series.planned_bytes}}) {
        ClientMetric bytes;
        bytes.label = {{"job_id", id}, {"kind", kind}};
        bytes.gauge.value = value;
        memory.metric.push_back(std::move(bytes));
      }
      for (const auto& [op, value] :
           {std::pair{"all_gather", series.gathered_bytes},
            {"broadcast", series.broadcast_bytes}}) {
        ClientMetric bytes;
        bytes.label = {{"job_id", id}, {"op", op}};
        bytes.counter.value = value;
        collective.metric.push_back(std::move(bytes));
      }
    }
  }
  for (MetricFamily* family : {&memory, &collective}) {
    if (!family->metric.empty()) families.push_back(std::move(*family));
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace qlora::agent
