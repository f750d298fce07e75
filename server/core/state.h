// The coordinator's state, and one transaction over it.
//
// Everything in server/core is deterministic: (State, event, now) goes in, a
// Draft with changed records and effects comes out. No I/O, no threads, no
// clock. The caller stores the draft's changes, then applies them to the State,
// then performs the effects in order.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/spec/job_spec.h"
#include "common/spec/model_description.h"
#include "qlora/v1/checkpoint.pb.h"
#include "qlora/v1/dataset.pb.h"
#include "qlora/v1/model.pb.h"
#include "server/core/overlay.h"
#include "server/records.pb.h"

namespace qlora::server {

// Every wait of the core (docs/failure_model.md, "Waits").
struct Timings {
  // How often a worker shall renew its lease.
  absl::Duration heartbeat = absl::Seconds(5);
  // A node silent for so long is UNREACHABLE.
  absl::Duration lease = absl::Seconds(30);
  // A node silent for so long is DOWN: its attempts are given up.
  absl::Duration reschedule_after = absl::Seconds(120);
  // The same, during as long after the coordinator's start.
  absl::Duration startup_reschedule_after = absl::Seconds(300);
  // From the reservation to Prepared by every node.
  absl::Duration prepare_timeout = absl::Minutes(10);
  // From Start to Running on every node.
  absl::Duration start_timeout = absl::Minutes(30);
  // Ranks that were told to stop are killed after this.
  absl::Duration stop_grace = absl::Seconds(10);
  // An agent that does not report the end so long after that is QUARANTINED.
  absl::Duration stop_margin = absl::Seconds(60);
  // First delay before a restart; doubles, at most backoff_max, with jitter.
  absl::Duration backoff = absl::Seconds(2);
  absl::Duration backoff_max = absl::Minutes(5);
};

// What is computed from a JobRecord's texts once.
struct JobPlan {
  JobSpec spec;
  // Absent if only workers can see the model.
  std::optional<ModelDescription> model;
  // Why this version cannot read the texts; then the rest is not theirs.
  absl::Status error = absl::OkStatus();
  // Whether a rank has room on a device with so much memory, with or without
  // fast bfloat16. Under the coordinator's lock.
  mutable std::map<std::tuple<int64_t, bool, int>, absl::Status> fits = {};
};

struct Job {
  JobRecord record;
  std::shared_ptr<const JobPlan> plan;

  const qlora::v1::Job& job() const { return record.job(); }
  qlora::v1::Job& mutable_job() { return *record.mutable_job(); }
};

struct Node {
  NodeRecord record;
  absl::Time last_heartbeat = absl::InfinitePast();
  // The open stream; 0: none.
  uint64_t stream = 0;
  // Hello.process of that stream.
  std::string process = {};

  const std::string& name() const { return record.node().name(); }
  qlora::v1::NodeState state() const { return record.node().state(); }
  // New attempts may be placed on it.
  bool schedulable() const {
    return stream != 0 && state() == qlora::v1::NODE_STATE_READY;
  }
};

// The largest message that the coordinator and its workers take.
inline constexpr int kMaxMessageBytes = 4 << 20;
// What a job and a checkpoint may add to a Prepare, so that it is none larger:
// the job file's text and the names of the model's and the inputs' files; the
// names of the checkpoint's.
inline constexpr size_t kMaxJobBytes = 2 << 20;
inline constexpr size_t kMaxStagedBytes = 1 << 20;
// Of a sentence that a worker reports: it becomes part of jobs and events, and
// a job with all that it has must fit a message.
inline constexpr size_t kMaxTextBytes = 8 << 10;

using AttemptKey = std::pair<std::string, int32_t>;
using CheckpointKey = std::pair<std::string, int64_t>;
using Command = std::shared_ptr<const qlora::v1::WorkerCommand>;

struct State {
  std::string cluster_id;
  int64_t term = 0;
  absl::Time start_time;
  // Since when workers can be heard and what they say be stored.
  absl::Time open_since;
  Timings timings;
  std::map<std::string, Job> jobs;
  std::map<AttemptKey, AttemptRecord> attempts;
  std::map<std::string, Node> nodes;
  std::map<CheckpointKey, qlora::v1::Checkpoint> checkpoints;
  std::map<std::string, qlora::v1::Model> models;
  std::map<std::string, qlora::v1::Dataset> datasets;
  // Commands that are not acknowledged, oldest first, by node.
  std::map<std::string, std::deque<Command>> outbox;
};

// What to do after the commit, in order.
struct CommandsReady {
  std::string node;
};
struct EventsStored {
  std::string node;
  uint64_t number;
};
struct CloseStream {
  std::string node;
  uint64_t stream;
  absl::Status status;
};
struct JobChanged {
  std::string job_id;
};
struct AppendEvent {
  std::string job_id;
  qlora::v1::JobEvent event;
};
struct JobRemoved {
  std::string job_id;
};
// The node's tasks will not be answered.
struct NodeGone {
  std::string node;
  std::string why;
};
struct JobFinished {
  std::string job_id;
  std::string outcome;
  std::string reason;
  absl::Duration duration;
};
struct JobStarted {
  absl::Duration queue_wait;
};
struct JobRestarted {
  std::string reason;
};
struct CheckpointCommitted {
  std::string job_id;
  int64_t bytes;
  absl::Duration duration;
};
using Effect =
    std::variant<CommandsReady, EventsStored, CloseStream, JobChanged,
                 AppendEvent, JobRemoved, NodeGone, JobFinished, JobStarted,
                 JobRestarted, CheckpointCommitted>;

// One transaction. Not thread-safe.
class Draft {
 public:
  // state must outlive this; jitter is a random number in [0, 1).
  Draft(const State& state, absl::Time now, double jitter)
      : state(state),
        now(now),
        jitter(jitter),
        jobs(state.jobs),
        attempts(state.attempts),
        nodes(state.nodes),
        checkpoints(state.checkpoints),
        models(state.models),
        datasets(state.datasets) {}

  // The job, to change it: its revision grows, watchers are told.
  Job& ChangeJob(const std::string& job_id);
  // Numbers the command and puts it into the node's outbox; returns the number.
  uint64_t Send(const std::string& node, qlora::v1::WorkerCommand command);
  void Emit(Effect effect) { effects.push_back(std::move(effect)); }
  // A line of the job's events.
  void Tell(const std::string& job_id, std::string_view type,
            std::string_view message, int32_t attempt = 0);

  // Changes the state; the draft is spent afterwards, but for its effects.
  void ApplyTo(State& state) &&;
  bool empty() const;

  const State& state;
  const absl::Time now;
  const double jitter;
  Overlay<std::string, Job> jobs;
  Overlay<AttemptKey, AttemptRecord> attempts;
  Overlay<std::string, Node> nodes;
  Overlay<CheckpointKey, qlora::v1::Checkpoint> checkpoints;
  Overlay<std::string, qlora::v1::Model> models;
  Overlay<std::string, qlora::v1::Dataset> datasets;
  std::vector<std::pair<std::string, Command>> commands;
  std::vector<Effect> effects;
};

bool IsTerminal(qlora::v1::JobState state);
bool IsTerminal(AttemptState state);

google::protobuf::Timestamp ToProto(absl::Time time);
absl::Time FromProto(const google::protobuf::Timestamp& time);

// "CANCELLED" of JOB_STATE_CANCELLED, "INFRA" of FAILURE_CLASS_INFRA.
std::string ShortName(qlora::v1::JobState state);
std::string ShortName(qlora::v1::FailureClass failure_class);
std::string ShortName(qlora::v1::NodeState state);

}  // namespace qlora::server
