// The server streams of JobService that follow a job.
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "server/services/job_service.h"
#include "server/services/pull_stream.h"

namespace qlora::server {
namespace {

// A job that ended so long ago has no events on their way any more.
constexpr absl::Duration kSettled = absl::Seconds(5);

// Reads a job's file of messages from an offset on.
template <typename Message>
class LogCursor {
 public:
  LogCursor(const JobLog* log, std::string job_id, LogKind kind, int64_t offset)
      : log_(log),
        job_id_(std::move(job_id)),
        kind_(kind),
        offset_(offset),
        end_(offset) {}

  // The next message, with its next_offset; false at the end for now.
  absl::StatusOr<bool> Next(Message* message) {
    while (true) {
      while (!lines_.empty()) {
        const std::string line = std::move(lines_.front());
        lines_.pop_front();
        offset_ += static_cast<int64_t>(line.size()) + 1;
        message->Clear();
        if (google::protobuf::util::JsonStringToMessage(line, message).ok()) {
          message->set_next_offset(offset_);
          return true;
        }
      }
      offset_ = end_;
      ASSIGN_OR_RETURN(JobLog::Chunk chunk,
                       log_->Read(job_id_, kind_, offset_));
      if (chunk.next_offset == offset_) return false;
      end_ = chunk.next_offset;
      lines_ = {std::make_move_iterator(chunk.lines.begin()),
                std::make_move_iterator(chunk.lines.end())};
    }
  }

 private:
  const JobLog* const log_;
  const std::string job_id_;
  const LogKind kind_;
  // Where the first of lines_ begins, and what follows the last.
  int64_t offset_;
  int64_t end_;
  std::deque<std::string> lines_;
};

// Sends what the cursor gives and `wanted` accepts; ends with the job, or at
// the end of the file unless follow. settled: nothing more will come, given
// that the job has ended.
template <typename Message>
grpc::ServerWriteReactor<Message>* Follow(
    const ServiceContext& services, const std::string& reference,
    const std::string& project, LogKind kind, bool follow,
    std::function<bool(const Message&)> wanted,
    std::function<absl::StatusOr<int64_t>(const std::string& job_id)> start,
    std::function<bool(const qlora::v1::Job&)> settled) {
  const auto job = services.coordinator->FindJob(reference, ProjectOf(project));
  const std::string id = job.ok() ? job->job().job_id() : "";
  auto cursor = std::make_shared<std::unique_ptr<LogCursor<Message>>>();
  return StartPull<Message>(
      services.pool, services.notifier, id,
      [=, found = job.status()](Message* message) -> absl::StatusOr<Pull> {
        RETURN_IF_ERROR(found);
        if (*cursor == nullptr) {
          ASSIGN_OR_RETURN(const int64_t offset, start(id));
          *cursor = std::make_unique<LogCursor<Message>>(services.log, id, kind,
                                                         offset);
        }
        // The state first: what was written before the end is then read below.
        bool ended = true;
        services.coordinator->Read([&](const State& state) {
          const auto it = state.jobs.find(id);
          ended = it == state.jobs.end() || it->second.record.deleting() ||
                  (IsTerminal(it->second.job().state()) &&
                   settled(it->second.job()));
        });
        while (true) {
          ASSIGN_OR_RETURN(const bool more, (*cursor)->Next(message));
          if (!more) return ended || !follow ? Pull::kEnd : Pull::kWait;
          if (wanted(*message)) return Pull::kItem;
        }
      });
}

std::function<absl::StatusOr<int64_t>(const std::string&)> From(
    int64_t offset) {
  return [offset](const std::string&) -> absl::StatusOr<int64_t> {
    RETURN_IF_ERROR(CheckNotNegative("from_offset", offset));
    return offset;
  };
}
bool AtOnce(const qlora::v1::Job&) { return true; }

}  // namespace

grpc::ServerWriteReactor<qlora::v1::Job>* JobService::WatchJob(
    Context*, const qlora::v1::WatchJobRequest* request) {
  const std::string project = ProjectOf(request->project());
  const auto job = services_.coordinator->FindJob(request->job(), project);
  const std::string id = job.ok() ? job->job().job_id() : "";
  auto sent = std::make_shared<qlora::v1::Job>();
  return StartPull<qlora::v1::Job>(
      services_.pool, services_.notifier, id,
      [=, this,
       found = job.status()](qlora::v1::Job* response) -> absl::StatusOr<Pull> {
        RETURN_IF_ERROR(found);
        if (IsTerminal(sent->state())) return Pull::kEnd;
        ASSIGN_OR_RETURN(*response, ViewJob(services_, id, project));
        if (response->revision() == sent->revision()) return Pull::kWait;
        *sent = *response;
        return Pull::kItem;
      });
}

grpc::ServerWriteReactor<qlora::v1::LogLine>* JobService::StreamLogs(
    Context*, const qlora::v1::StreamLogsRequest* request) {
  const bool all = request->all_ranks() || request->rank() < 0;
  const auto wanted = [all,
                       rank = request->rank()](const qlora::v1::LogLine& line) {
    return all || line.rank() == rank;
  };
  const int64_t tail = request->tail();
  const JobLog* log = services_.log;
  const int64_t from = request->from_offset();
  const auto start = [=](const std::string& job_id) -> absl::StatusOr<int64_t> {
    RETURN_IF_ERROR(CheckNotNegative("from_offset", from));
    RETURN_IF_ERROR(CheckNotNegative("tail", tail));
    if (from > 0 || tail == 0) return from;
    return log->TailOffset(
        job_id, LogKind::kLogs, tail, [&](const std::string& text) {
          qlora::v1::LogLine line;
          return google::protobuf::util::JsonStringToMessage(text, &line)
                     .ok() &&
                 wanted(line);
        });
  };
  return Follow<qlora::v1::LogLine>(services_, request->job(),
                                    request->project(), LogKind::kLogs,
                                    request->follow(), wanted, start, AtOnce);
}

grpc::ServerWriteReactor<qlora::v1::JobEvent>* JobService::StreamEvents(
    Context*, const qlora::v1::StreamEventsRequest* request) {
  // The last event is written just after the job's last change.
  auto last = std::make_shared<std::string>();
  return Follow<qlora::v1::JobEvent>(
      services_, request->job(), request->project(), LogKind::kEvents,
      request->follow(),
      [last](const qlora::v1::JobEvent& event) {
        *last = event.type();
        return true;
      },
      From(request->from_offset()),
      [last](const qlora::v1::Job& job) {
        return *last == "Succeeded" || *last == "Failed" ||
               *last == "Cancelled" ||
               absl::Now() - FromProto(job.finish_time()) > kSettled;
      });
}

grpc::ServerWriteReactor<qlora::v1::MetricPoint>* JobService::StreamMetrics(
    Context*, const qlora::v1::StreamMetricsRequest* request) {
  const auto start = [from = From(request->from_offset()),
                      after = request->after_step()](
                         const std::string& job_id) -> absl::StatusOr<int64_t> {
    RETURN_IF_ERROR(CheckNotNegative("after_step", after));
    return from(job_id);
  };
  return Follow<qlora::v1::MetricPoint>(
      services_, request->job(), request->project(), LogKind::kMetrics,
      /*follow=*/true,
      [after = request->after_step()](const qlora::v1::MetricPoint& point) {
        return point.step() > after;
      },
      start, AtOnce);
}

}  // namespace qlora::server
