#include "client/render.h"

#include <google/protobuf/util/time_util.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace qlora::client {
namespace {

std::string Age(bool present, const google::protobuf::Timestamp& time,
                absl::Time now) {
  return present ? ShortDuration(now - ToTime(time)) : "-";
}

std::string Steps(const v1::Job& job) {
  const v1::JobProgress& progress = job.progress();
  if (progress.total_steps() == 0) return "-";
  return absl::StrCat(progress.step(), "/", progress.total_steps());
}

std::string Loss(const v1::Job& job) {
  return job.progress().step() == 0 ? "-" : FormatNumber(job.progress().loss());
}

std::string Nodes(const v1::Job& job) {
  std::vector<std::string> names;
  for (const v1::RankAssignment& rank : job.ranks()) {
    if (names.empty() || names.back() != rank.node()) {
      names.push_back(rank.node());
    }
  }
  return names.empty() ? "-" : absl::StrJoin(names, ",");
}

std::string OrDash(const std::string& text) {
  return text.empty() ? "-" : text;
}

int64_t OutputBytes(const v1::Job& job) {
  int64_t bytes = 0;
  for (const v1::ArtifactFile& file : job.output()) bytes += file.size_bytes();
  return bytes;
}

// Doubles as JSON and CSV have them: shortest text that gives the value back.
std::string Exact(double value) { return nlohmann::json(value).dump(); }

}  // namespace

std::string StateName(v1::JobState state) {
  return std::string(absl::StripPrefix(v1::JobState_Name(state), "JOB_STATE_"));
}

std::string StateName(v1::NodeState state) {
  return std::string(
      absl::StripPrefix(v1::NodeState_Name(state), "NODE_STATE_"));
}

std::string StateName(v1::CheckpointState state) {
  return std::string(
      absl::StripPrefix(v1::CheckpointState_Name(state), "CHECKPOINT_STATE_"));
}

std::string FailureName(v1::FailureClass failure) {
  return std::string(
      absl::StripPrefix(v1::FailureClass_Name(failure), "FAILURE_CLASS_"));
}

bool IsTerminal(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED ||
         state == v1::JOB_STATE_CANCELLED;
}

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixNanos(
      google::protobuf::util::TimeUtil::TimestampToNanoseconds(time));
}

std::string FormatTime(bool present, const google::protobuf::Timestamp& time) {
  if (!present) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", ToTime(time),
                          absl::LocalTimeZone());
}

View<v1::Job> JobView(absl::Time now) {
  using J = const v1::Job&;
  return {
      {{"ID", [](J j) { return j.job_id(); }},
       {"NAME", [](J j) { return OrDash(j.name()); }},
       {"STATE", [](J j) { return StateName(j.state()); }},
       {"METHOD", [](J j) { return j.method(); }},
       {"STEP", Steps, false, true},
       {"LOSS", Loss, false, true},
       {"ETA",
        [](J j) {
          if (j.state() != v1::JOB_STATE_RUNNING || !j.progress().has_eta()) {
            return std::string("-");
          }
          return ShortDuration(absl::Seconds(j.progress().eta().seconds()));
        },
        false, true},
       {"AGE",
        [now](J j) { return Age(j.has_create_time(), j.create_time(), now); },
        false, true},
       {"RESTARTS", [](J j) { return absl::StrCat(j.restarts()); }, true, true},
       {"PRIORITY", [](J j) { return absl::StrCat(j.priority()); }, true, true},
       {"NODES", Nodes, true},
       {"REASON", [](J j) { return OrDash(j.reason()); }, true}},
      [](J j) { return j.job_id(); }};
}

View<v1::Job> AdapterView(absl::Time now) {
  using J = const v1::Job&;
  return {
      {{"JOB", [](J j) { return j.job_id(); }},
       {"NAME", [](J j) { return OrDash(j.name()); }},
       {"METHOD", [](J j) { return j.method(); }},
       {"STEP", [](J j) { return absl::StrCat(j.progress().step()); }, false,
        true},
       {"LOSS", Loss, false, true},
       {"SIZE", [](J j) { return FormatBytes(OutputBytes(j)); }, false, true},
       {"FINISHED",
        [now](J j) { return Age(j.has_finish_time(), j.finish_time(), now); },
        false, true},
       {"FILES", [](J j) { return absl::StrCat(j.output_size()); }, true,
        true}},
      [](J j) { return j.job_id(); }};
}

View<v1::Node> NodeView(absl::Time now) {
  using N = const v1::Node&;
  return {{{"NAME", [](N n) { return n.name(); }},
           {"STATE", [](N n) { return StateName(n.state()); }},
           {"DEVICES", [](N n) { return absl::StrCat(n.devices_size()); },
            false, true},
           {"BUSY",
            [](N n) {
              int busy = 0;
              for (const v1::Device& d : n.devices()) {
                busy += !d.job_id().empty();
              }
              return absl::StrCat(busy);
            },
            false, true},
           {"MEMORY", [](N n) { return FormatBytes(n.memory_bytes()); }, false,
            true},
           {"HEARTBEAT",
            [now](N n) {
              return Age(n.has_last_heartbeat(), n.last_heartbeat(), now);
            },
            false, true},
           {"VERSION", [](N n) { return OrDash(n.version()); }, true},
           {"DEVICE NAMES",
            [](N n) {
              return absl::StrJoin(n.devices(), ",",
                                   [](std::string* out, const v1::Device& d) {
                                     out->append(d.name());
                                   });
            },
            true},
           {"MODEL ROOTS",
            [](N n) { return absl::StrJoin(n.model_roots(), ","); }, true}},
          [](N n) { return n.name(); }};
}

View<v1::Model> ModelView(absl::Time now) {
  using M = const v1::Model&;
  return {
      {{"NAME", [](M m) { return m.name(); }},
       {"ARCHITECTURE", [](M m) { return m.architecture(); }},
       {"PARAMETERS", [](M m) { return absl::StrCat(m.parameters()); }, false,
        true},
       {"SIZE", [](M m) { return FormatBytes(m.size_bytes()); }, false, true},
       {"AGE",
        [now](M m) { return Age(m.has_create_time(), m.create_time(), now); },
        false, true},
       {"WHERE",
        [](M m) {
          return m.directory().empty() ? "uploaded" : m.directory();
        }}},
      [](M m) { return m.name(); }};
}

View<v1::Dataset> DatasetView(absl::Time now) {
  using D = const v1::Dataset&;
  return {
      {{"NAME", [](D d) { return d.name(); }},
       {"SIZE", [](D d) { return FormatBytes(d.file().size_bytes()); }, false,
        true},
       {"AGE",
        [now](D d) { return Age(d.has_create_time(), d.create_time(), now); },
        false, true},
       {"FILE", [](D d) { return d.file().path(); }},
       {"SHA256", [](D d) { return d.file().sha256(); }, true}},
      [](D d) { return d.name(); }};
}

View<v1::Checkpoint> CheckpointView() {
  using C = const v1::Checkpoint&;
  return {
      {{"STEP", [](C c) { return absl::StrCat(c.step()); }, false, true},
       {"STATE", [](C c) { return StateName(c.state()); }},
       {"HEAD", [](C c) { return std::string(c.head() ? "*" : "-"); }},
       {"SIZE", [](C c) { return FormatBytes(c.size_bytes()); }, false, true},
       {"ATTEMPT", [](C c) { return absl::StrCat(c.attempt()); }, false, true},
       {"COMMITTED",
        [](C c) { return FormatTime(c.has_commit_time(), c.commit_time()); }},
       {"FILES", [](C c) { return absl::StrCat(c.files_size()); }, true, true},
       {"MANIFEST", [](C c) { return c.manifest_sha256(); }, true}},
      [](C c) { return absl::StrCat(c.step()); }};
}

View<v1::MetricPoint> MetricView() {
  using P = const v1::MetricPoint&;
  return {
      {{"STEP", [](P p) { return absl::StrCat(p.step()); }, false, true},
       {"EPOCH", [](P p) { return absl::StrFormat("%.2f", p.epoch()); }, false,
        true},
       {"LOSS", [](P p) { return FormatLoss(p.loss()); }, false, true},
       {"EVAL LOSS",
        [](P p) { return p.has_eval_loss() ? FormatLoss(p.eval_loss()) : "-"; },
        false, true},
       {"GRAD NORM", [](P p) { return FormatNumber(p.grad_norm()); }, false,
        true},
       {"LEARNING RATE", [](P p) { return FormatNumber(p.learning_rate()); },
        false, true},
       {"TOKENS/S",
        [](P p) { return absl::StrFormat("%.0f", p.tokens_per_second()); },
        false, true},
       {"TOKENS", [](P p) { return absl::StrCat(p.tokens_trained()); }, true,
        true},
       {"SECONDS",
        [](P p) { return absl::StrFormat("%.3f", p.step_seconds()); }, true,
        true},
       {"MEMORY", [](P p) { return FormatBytes(p.memory_bytes()); }, true,
        true}},
      [](P p) { return absl::StrCat(p.step()); }};
}

View<v1::JobEvent> EventView() {
  using E = const v1::JobEvent&;
  return {
      {{"TIME", [](E e) { return FormatTime(e.has_time(), e.time()); }},
       {"TYPE", [](E e) { return e.type(); }},
       {"ATTEMPT", [](E e) { return absl::StrCat(e.attempt()); }, false, true},
       {"MESSAGE", [](E e) { return e.message(); }}},
      [](E e) { return e.type(); }};
}

std::string IndentRest(const std::string& text, size_t columns) {
  return absl::StrReplaceAll(text, {{"\n", "\n" + std::string(columns, ' ')}});
}

std::string FormatLogLine(const v1::LogLine& line, bool with_rank) {
  return absl::StrCat(
      absl::FormatTime("%H:%M:%S ", ToTime(line.time()), absl::LocalTimeZone()),
      with_rank ? absl::StrCat("rank ", line.rank(), " ") : "", line.level(),
      " ", line.text(), "\n");
}

std::string FormatEvent(const v1::JobEvent& event) {
  // The longest type is CheckpointCommitted.
  const std::string before = absl::StrFormat(
      "%s  %-19s  ", FormatTime(event.has_time(), event.time()), event.type());
  return absl::StrCat(before, IndentRest(event.message(), before.size()), "\n");
}

std::string FormatPoint(const v1::MetricPoint& point) {
  std::string text = absl::StrFormat(
      "step %d/%d loss %s grad_norm %s lr %s tokens/s %.0f", point.step(),
      point.total_steps(), FormatLoss(point.loss()),
      FormatNumber(point.grad_norm()), FormatNumber(point.learning_rate()),
      point.tokens_per_second());
  if (point.has_eval_loss()) {
    absl::StrAppend(&text, " eval_loss ", FormatLoss(point.eval_loss()));
  }
  return text;
}

std::string MetricsCsv(const std::vector<v1::MetricPoint>& points) {
  std::string text =
      "step,epoch,time,loss,grad_norm,learning_rate,tokens_trained,"
      "tokens_total,tokens_per_second,step_seconds,memory_bytes,eval_loss\n";
  for (const v1::MetricPoint& p : points) {
    absl::StrAppend(
        &text,
        absl::StrJoin(
            {absl::StrCat(p.step()), Exact(p.epoch()),
             google::protobuf::util::TimeUtil::ToString(p.time()),
             Exact(p.loss()), Exact(p.grad_norm()), Exact(p.learning_rate()),
             absl::StrCat(p.tokens_trained()), absl::StrCat(p.tokens_total()),
             Exact(p.tokens_per_second()), Exact(p.step_seconds()),
             absl::StrCat(p.memory_bytes()),
             p.has_eval_loss() ? Exact(p.eval_loss()) : std::string()},
            ","),
        "\n");
  }
  return text;
}

std::string MetricsJsonl(const std::vector<v1::MetricPoint>& points) {
  std::string text;
  for (const v1::MetricPoint& p : points) {
    nlohmann::ordered_json line = {
        {"step", p.step()},
        {"epoch", p.epoch()},
        {"time", google::protobuf::util::TimeUtil::ToString(p.time())},
        {"loss", p.loss()},
        {"grad_norm", p.grad_norm()},
        {"learning_rate", p.learning_rate()},
        {"tokens_trained", p.tokens_trained()},
        {"tokens_total", p.tokens_total()},
        {"tokens_per_second", p.tokens_per_second()},
        {"step_seconds", p.step_seconds()},
        {"memory_bytes", p.memory_bytes()}};
    if (p.has_eval_loss()) line["eval_loss"] = p.eval_loss();
    absl::StrAppend(&text, line.dump(), "\n");
  }
  return text;
}

}  // namespace qlora::client
