// What users see of jobs, nodes, models and the rest. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/output.h"
#include "qlora/v1/checkpoint.pb.h"
#include "qlora/v1/dataset.pb.h"
#include "qlora/v1/job.pb.h"
#include "qlora/v1/model.pb.h"
#include "qlora/v1/node.pb.h"

namespace qlora::client {

// "RUNNING" for JOB_STATE_RUNNING.
std::string StateName(v1::JobState state);
std::string StateName(v1::NodeState state);
std::string StateName(v1::CheckpointState state);
std::string FailureName(v1::FailureClass failure);
bool IsTerminal(v1::JobState state);

absl::Time ToTime(const google::protobuf::Timestamp& time);
// "2026-03-01 14:05:09" in local time; "-" when unset.
std::string FormatTime(bool present, const google::protobuf::Timestamp& time);

// Ages are told relative to `now`.
View<v1::Job> JobView(absl::Time now);
// Finished jobs as adapters.
View<v1::Job> AdapterView(absl::Time now);
View<v1::Node> NodeView(absl::Time now);
View<v1::Model> ModelView(absl::Time now);
View<v1::Dataset> DatasetView(absl::Time now);
View<v1::Checkpoint> CheckpointView();
View<v1::MetricPoint> MetricView();
View<v1::JobEvent> EventView();

// Lines but the first begin after so many blanks.
std::string IndentRest(const std::string& text, size_t columns);

// A log line as `logs` prints it: "14:05:09 0 info text"; the rank only when
// asked for.
std::string FormatLogLine(const v1::LogLine& line, bool with_rank);
// An event as `events -f` prints it.
std::string FormatEvent(const v1::JobEvent& event);

// What was read of the data, on one line: "records: 58 read, 2 bad (skipped),
// ...; rows: 40 to train, 6 to evaluate".
std::string DataText(const v1::DataCounts& data);

// All that `describe` shows.
std::string DescribeJob(const v1::Job& job,
                        const std::vector<v1::JobEvent>& events,
                        const std::vector<v1::Checkpoint>& checkpoints,
                        absl::Time now);
// Why a HELD or FAILED job does not go on and what to do, for below its row in
// a table; else empty.
std::string FormatTrouble(const v1::Job& job);
std::string FormatPlan(const v1::PlanJobResponse& plan);

// The metrics as comma-separated values, header first; empty cells where a
// point has no evaluation loss.
std::string MetricsCsv(const std::vector<v1::MetricPoint>& points);
// One object a point, with the keys of metrics.jsonl.
std::string MetricsJsonl(const std::vector<v1::MetricPoint>& points);

// One logged point in words, for a pipe: "step 12/100 loss 1.84 ...".
std::string FormatPoint(const v1::MetricPoint& point);

}  // namespace qlora::client
