#include "server/telemetry.h"

#include <google/protobuf/util/json_util.h>
#include <prometheus/gauge.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "common/daemon/build_info.h"
#include "server/core/attempt.h"

namespace qlora::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// A job's series stay for so long after its end.
constexpr absl::Duration kKeepSeries = absl::Minutes(5);

prometheus::Histogram& AddHistogram(prometheus::Registry& registry,
                                    const char* name, const char* help,
                                    std::vector<double> bounds) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Register(registry)
      .Add({}, bounds);
}

MetricFamily Family(const char* name, const char* help, MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

using Labels = std::vector<std::pair<std::string, std::string>>;

void Add(MetricFamily& family, const Labels& labels, double value) {
  ClientMetric metric;
  for (const auto& [name, text] : labels) metric.label.push_back({name, text});
  if (family.type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(std::move(metric));
}

// As near as protobuf has one: JSON of what is beyond cannot be written.
google::protobuf::Duration ToDuration(double seconds) {
  constexpr double kMaxSeconds = 315'576'000'000;
  google::protobuf::Duration duration;
  if (std::isfinite(seconds)) {
    duration.set_seconds(
        static_cast<int64_t>(std::clamp(seconds, 0.0, kMaxSeconds)));
  }
  return duration;
}

bool After(const qlora::v1::MetricPoint& a, const qlora::v1::MetricPoint& b) {
  return std::make_tuple(a.attempt(), a.step()) >
         std::make_tuple(b.attempt(), b.step());
}

}  // namespace

Telemetry::Telemetry(const JobLog* log, Clock* clock)
    : log_(log), clock_(clock) {
  prometheus::BuildGauge()
      .Name("qlora_build_info")
      .Help("What this program was built from")
      .Register(registry_)
      .Add(BuildInfo())
      .Set(1);
  submitted_ = &prometheus::BuildCounter()
                    .Name("qlora_jobs_submitted_total")
                    .Help("Jobs accepted into the queue")
                    .Register(registry_)
                    .Add({});
  finished_ = &prometheus::BuildCounter()
                   .Name("qlora_jobs_finished_total")
                   .Help("Jobs that ended, by outcome and failure class")
                   .Register(registry_);
  finished_->Add({{"outcome", "SUCCEEDED"}, {"reason", ""}});
  finished_->Add({{"outcome", "CANCELLED"}, {"reason", ""}});
  restarts_ = &prometheus::BuildCounter()
                   .Name("qlora_job_restarts_total")
                   .Help("Gangs started again, by the failure class before")
                   .Register(registry_);
  for (int value = qlora::v1::FailureClass_MIN + 1;
       value <= qlora::v1::FailureClass_MAX; ++value) {
    const std::string name =
        ShortName(static_cast<qlora::v1::FailureClass>(value));
    finished_->Add({{"outcome", "FAILED"}, {"reason", name}});
    restarts_->Add({{"reason", name}});
  }
  rpcs_ = &prometheus::BuildCounter()
               .Name("qlora_grpc_server_handled_total")
               .Help("Calls that ended, by status code")
               .Register(registry_);
  rpc_seconds_ = &prometheus::BuildHistogram()
                      .Name("qlora_grpc_server_handling_seconds")
                      .Help("Time from a call's arrival to its status")
                      .Register(registry_);
  queue_wait_ = &AddHistogram(
      registry_, "qlora_job_queue_wait_seconds", "From queued to placed",
      {0.1, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400});
  job_duration_ = &AddHistogram(
      registry_, "qlora_job_duration_seconds", "From first running to the end",
      {1, 10, 60, 300, 900, 3600, 14400, 43200, 86400, 604800});
  scheduler_pass_ = &AddHistogram(
      registry_, "qlora_scheduler_pass_duration_seconds",
      "One pass over the queue", {1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1});
  checkpoint_duration_ =
      &AddHistogram(registry_, "qlora_checkpoint_duration_seconds",
                    "From the first rank's share to the commit",
                    {0.01, 0.1, 0.5, 1, 5, 15, 60, 300});
  checkpoint_bytes_ = &prometheus::BuildCounter()
                           .Name("qlora_checkpoint_bytes_total")
                           .Help("Bytes of committed checkpoints")
                           .Register(registry_)
                           .Add({{"kind", "written"}});
  step_duration_ = &AddHistogram(
      registry_, "qlora_train_step_duration_seconds", "One optimizer step",
      {0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300});
}

Telemetry::Series Telemetry::Recorded(const std::string& job_id) const {
  Series series;
  const auto offset = log_->TailOffset(job_id, LogKind::kMetrics, 200,
                                       [](const std::string&) { return true; });
  if (!offset.ok()) return series;
  const auto chunk = log_->Read(job_id, LogKind::kMetrics, *offset);
  if (!chunk.ok()) return series;
  for (const std::string& line : chunk->lines) {
    qlora::v1::MetricPoint point;
    if (!google::protobuf::util::JsonStringToMessage(line, &point).ok()) {
      continue;
    }
    if (point.has_eval_loss()) {
      series.eval_loss = point.eval_loss();
      series.has_eval_loss = true;
    }
    series.last = std::move(point);
  }
  return series;
}

void Telemetry::Know(const std::string& job_id) {
  {
    MutexLock lock(&mu_);
    if (series_.contains(job_id)) return;
  }
  Series recorded = Recorded(job_id);
  MutexLock lock(&mu_);
  series_.try_emplace(job_id, std::move(recorded));
}

bool Telemetry::OnPoint(const std::string& job_id,
                        const qlora::v1::MetricPoint& point) {
  Know(job_id);
  MutexLock lock(&mu_);
  Series& series = series_[job_id];
  if (!After(point, series.last)) return false;
  series.last = point;
  if (point.has_eval_loss()) {
    series.eval_loss = point.eval_loss();
    series.has_eval_loss = true;
  }
  series.steps += point.new_steps();
  series.trained += point.new_tokens_trained();
  series.masked += point.new_tokens_total() - point.new_tokens_trained();
  series.padding += point.tokens_padding();
  for (const auto& [phase, seconds] : point.phase_seconds()) {
    series.phase_seconds[phase] += seconds;
  }
  step_duration_->Observe(point.step_seconds());
  return true;
}

qlora::v1::JobProgress Telemetry::Progress(const std::string& job_id) {
  Know(job_id);
  MutexLock lock(&mu_);
  const Series& series = series_[job_id];
  const qlora::v1::MetricPoint& last = series.last;
  qlora::v1::JobProgress progress;
  progress.set_step(last.step());
  progress.set_total_steps(last.total_steps());
  progress.set_epoch(last.epoch());
  progress.set_loss(last.loss());
  progress.set_eval_loss(series.eval_loss);
  progress.set_has_eval_loss(series.has_eval_loss);
  progress.set_learning_rate(last.learning_rate());
  progress.set_tokens_per_second(last.tokens_per_second());
  const int64_t left = std::max<int64_t>(0, last.total_steps() - last.step());
  *progress.mutable_eta() =
      ToDuration(static_cast<double>(left) * last.step_seconds());
  return progress;
}

void Telemetry::OnJobEnded(const std::string& job_id) {
  MutexLock lock(&mu_);
  const auto it = series_.find(job_id);
  if (it != series_.end()) it->second.until = clock_->Now() + kKeepSeries;
}

void Telemetry::Forget(const std::string& job_id) {
  MutexLock lock(&mu_);
  series_.erase(job_id);
}

void Telemetry::Count(const JobFinished& finished) {
  finished_->Add({{"outcome", finished.outcome}, {"reason", finished.reason}})
      .Increment();
  job_duration_->Observe(absl::ToDoubleSeconds(finished.duration));
  OnJobEnded(finished.job_id);
}

void Telemetry::Count(const JobStarted& started) {
  queue_wait_->Observe(absl::ToDoubleSeconds(started.queue_wait));
}

void Telemetry::Count(const JobRestarted& restarted) {
  restarts_->Add({{"reason", restarted.reason}}).Increment();
}

void Telemetry::Count(const CheckpointCommitted& committed) {
  checkpoint_duration_->Observe(absl::ToDoubleSeconds(committed.duration));
  checkpoint_bytes_->Increment(static_cast<double>(committed.bytes));
  Know(committed.job_id);
  MutexLock lock(&mu_);
  Series& series = series_[committed.job_id];
  series.checkpoint_time =
      absl::ToDoubleSeconds(clock_->Now() - absl::UnixEpoch());
}

void Telemetry::ObserveSchedulerPass(absl::Duration duration) {
  scheduler_pass_->Observe(absl::ToDoubleSeconds(duration));
}

void Telemetry::CountRpc(const std::string& service, const std::string& method,
                         const std::string& code, absl::Duration duration) {
  rpcs_->Add({{"service", service}, {"method", method}, {"code", code}})
      .Increment();
  rpc_seconds_
      ->Add({{"service", service}, {"method", method}},
            std::vector<double>{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10})
      .Observe(absl::ToDoubleSeconds(duration));
}

std::vector<MetricFamily> Telemetry::JobFamilies() {
  MetricFamily loss =
      Family("qlora_train_loss", "Loss of the newest step, per trained token",
             MetricType::Gauge);
  MetricFamily eval = Family("qlora_eval_loss", "Loss of the newest evaluation",
                             MetricType::Gauge);
  MetricFamily norm =
      Family("qlora_train_grad_norm", "Gradient norm before clipping",
             MetricType::Gauge);
  MetricFamily rate =
      Family("qlora_train_learning_rate", "Learning rate of the newest step",
             MetricType::Gauge);
  MetricFamily epoch = Family("qlora_train_epoch",
                              "Passes over the data so far", MetricType::Gauge);
  MetricFamily steps = Family("qlora_train_steps_total",
                              "Optimizer steps since the coordinator started",
                              MetricType::Counter);
  MetricFamily tokens =
      Family("qlora_train_tokens_total",
             "Tokens since the coordinator started, by what became of them",
             MetricType::Counter);
  MetricFamily phases =
      Family("qlora_train_phase_seconds_total",
             "Time of rank 0 since the coordinator started, by what it did",
             MetricType::Counter);
  MetricFamily saved =
      Family("qlora_checkpoint_last_success_timestamp_seconds",
             "When the newest checkpoint was committed", MetricType::Gauge);
  const absl::Time now = clock_->Now();
  MutexLock lock(&mu_);
  std::erase_if(series_,
                [&](const auto& entry) { return entry.second.until < now; });
  for (const auto& [id, series] : series_) {
    const Labels job = {{"job_id", id}};
    if (series.checkpoint_time > 0) Add(saved, job, series.checkpoint_time);
    if (series.steps == 0) continue;
    Add(loss, job, series.last.loss());
    Add(norm, job, series.last.grad_norm());
    Add(rate, job, series.last.learning_rate());
    Add(epoch, job, series.last.epoch());
    Add(steps, job, static_cast<double>(series.steps));
    if (series.has_eval_loss) Add(eval, job, series.eval_loss);
    for (const auto& [kind, count] : {std::pair{"trained", series.trained},
                                      {"masked", series.masked},
                                      {"padding", series.padding}}) {
      Add(tokens, {{"job_id", id}, {"kind", kind}}, static_cast<double>(count));
    }
    for (const auto& [phase, seconds] : series.phase_seconds) {
      Add(phases, {{"job_id", id}, {"phase", phase}}, seconds);
    }
  }
  return {loss, eval, norm, rate, epoch, steps, tokens, phases, saved};
}

std::string Telemetry::Text(std::vector<MetricFamily> families) {
  for (MetricFamily& family : registry_.Collect()) {
    families.push_back(std::move(family));
  }
  for (MetricFamily& family : JobFamilies()) {
    families.push_back(std::move(family));
  }
  std::erase_if(families,
                [](const MetricFamily& f) { return f.metric.empty(); });
  return prometheus::TextSerializer().Serialize(families);
}

namespace {

MetricFamily JobsByState(const State& state) {
  MetricFamily jobs = Family("qlora_jobs", "Jobs by state", MetricType::Gauge);
  std::map<std::string, int> by_state;
  for (int value = qlora::v1::JobState_MIN + 1;
       value <= qlora::v1::JobState_MAX; ++value) {
    by_state[ShortName(static_cast<qlora::v1::JobState>(value))] = 0;
  }
  for (const auto& [id, job] : state.jobs) {
    ++by_state[ShortName(job.job().state())];
  }
  for (const auto& [name, count] : by_state)
    Add(jobs, {{"state", name}}, count);
  return jobs;
}

}  // namespace

std::vector<MetricFamily> StateFamilies(const State& state) {
  MetricFamily workers =
      Family("qlora_workers", "Worker nodes by state", MetricType::Gauge);
  MetricFamily heartbeats =
      Family("qlora_worker_last_heartbeat_timestamp_seconds",
             "When the node last renewed its lease", MetricType::Gauge);
  MetricFamily devices = Family("qlora_devices", "Devices of the nodes, by use",
                                MetricType::Gauge);
  MetricFamily assigned =
      Family("qlora_device_assignment_info",
             "Which rank of which job has the device", MetricType::Gauge);
  std::map<std::string, int> nodes_by_state;
  for (int value = qlora::v1::NodeState_MIN + 1;
       value <= qlora::v1::NodeState_MAX; ++value) {
    nodes_by_state[ShortName(static_cast<qlora::v1::NodeState>(value))] = 0;
  }
  std::set<std::pair<std::string, std::string>> busy;
  for (const auto& [key, attempt] : state.attempts) {
    for (const auto& rank : attempt.ranks()) {
      if (!HoldsDevices(attempt, rank.node())) continue;
      busy.emplace(rank.node(), rank.device());
      Add(assigned,
          {{"node", rank.node()},
           {"device_uuid", rank.device()},
           {"job_id", key.first},
           {"rank", std::to_string(rank.rank())}},
          1);
    }
  }
  for (const auto& [name, node] : state.nodes) {
    ++nodes_by_state[ShortName(node.state())];
    if (node.last_heartbeat != absl::InfinitePast()) {
      Add(heartbeats, {{"node", name}},
          absl::ToDoubleSeconds(node.last_heartbeat - absl::UnixEpoch()));
    }
    std::map<std::pair<std::string, std::string>, int> counts;
    for (const auto& device : node.record.node().devices()) {
      const char* use = busy.contains({name, device.name()}) ? "busy"
                        : node.schedulable()                 ? "free"
                                                             : "unavailable";
      ++counts[{device.model(), use}];
    }
    for (const auto& [key, count] : counts) {
      Add(devices,
          {{"node", name}, {"model", key.first}, {"state", key.second}}, count);
    }
  }
  for (const auto& [name, count] : nodes_by_state) {
    Add(workers, {{"state", name}}, count);
  }
  return {JobsByState(state), workers, heartbeats, devices, assigned};
}

}  // namespace qlora::server
