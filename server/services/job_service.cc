#include "server/services/job_service.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "server/core/job.h"
#include "server/core/scheduler.h"

namespace qlora::server {

using JobView = qlora::v1::Job;

namespace {

// What fits a message with every field of each point set.
constexpr size_t kMaxPoints = 8'000;
// Of a reason that a user gives; it stays with the job.
constexpr size_t kMaxReasonBytes = 1024;

absl::Status Create(const ServiceContext& services,
                    const qlora::v1::CreateJobRequest& request,
                    JobView* response) {
  const std::string digest = RequestDigest(request);
  if (!request.validate_only()) {
    // A repeated request is not judged again.
    ASSIGN_OR_RETURN(const auto known, services.coordinator->FindResult(
                                           request.request_id(), digest));
    if (known) {
      response->ParseFromString(*known);
      return absl::OkStatus();
    }
  }
  ASSIGN_OR_RETURN(const Job job, services.admission->Admit(request.job_file(),
                                                            request.inputs()));
  absl::Status fits;
  services.coordinator->Read(
      [&](const State& state) { fits = CheckCanEverFit(state, job); });
  if (!fits.ok()) return FieldError("resources", std::string(fits.message()));
  if (request.validate_only()) {
    *response = job.job();
    return absl::OkStatus();
  }
  bool created = false;
  ASSIGN_OR_RETURN(const std::string stored,
                   services.coordinator->Mutate(
                       request.request_id(), digest,
                       [&](Draft& draft) -> absl::StatusOr<std::string> {
                         created = true;
                         QueueJob(draft, job);
                         return draft.jobs.Find(job.job().job_id())
                             ->job()
                             .SerializeAsString();
                       }));
  if (created) services.telemetry->CountSubmitted();
  response->ParseFromString(stored);
  return absl::OkStatus();
}

// A mutating call on one existing job.
template <typename Request>
absl::StatusOr<std::string> MutateJob(
    const ServiceContext& services, const Request& request,
    const std::function<absl::StatusOr<std::string>(
        Draft&, const std::string& job_id)>& change) {
  // Looked up inside, so that a repeated delete finds its first result.
  const auto found = services.coordinator->FindJob(
      request.job(), ProjectOf(request.project()));
  return services.coordinator->Mutate(
      request.request_id(), RequestDigest(request),
      [&](Draft& draft) -> absl::StatusOr<std::string> {
        RETURN_IF_ERROR(found.status());
        const std::string id = found->job().job_id();
        if (draft.jobs.Find(id) == nullptr) {
          return absl::NotFoundError(absl::StrCat("no job ", id));
        }
        return change(draft, id);
      });
}

// The same for calls that answer with the job as it is then.
template <typename Request>
absl::Status ChangeJob(
    const ServiceContext& services, const Request& request,
    const std::function<absl::Status(Draft&, const std::string& job_id)>& f,
    JobView* response) {
  ASSIGN_OR_RETURN(
      const std::string stored,
      MutateJob(services, request,
                [&](Draft& draft,
                    const std::string& id) -> absl::StatusOr<std::string> {
                  RETURN_IF_ERROR(f(draft, id));
                  return draft.jobs.Find(id)->job().SerializeAsString();
                }));
  response->ParseFromString(stored);
  return absl::OkStatus();
}

// The age of the last job of a page: it may be gone when the next is asked for.
std::string PageToken(const JobView& last) {
  const auto [seconds, nanos, id] = AgeOf(last);
  return absl::StrCat(seconds, ".", nanos, ".", id);
}

absl::StatusOr<std::optional<JobAge>> ParsePageToken(const std::string& token) {
  if (token.empty()) return std::optional<JobAge>();
  const std::vector<std::string> parts =
      absl::StrSplit(token, absl::MaxSplits('.', 2));
  JobAge age;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &std::get<0>(age)) ||
      !absl::SimpleAtoi(parts[1], &std::get<1>(age))) {
    return FieldError("page_token", "is none that ListJobs has given");
  }
  std::get<2>(age) = parts[2];
  return std::optional<JobAge>(age);
}

absl::Status List(const ServiceContext& services,
                  const qlora::v1::ListJobsRequest& request,
                  qlora::v1::ListJobsResponse* response) {
  if (request.page_size() < 0 || request.page_size() > 1000) {
    return FieldError("page_size", "must be 0 to 1000");
  }
  const int size = request.page_size() == 0 ? 100 : request.page_size();
  JobFilter filter;
  filter.project = ProjectOf(request.project());
  for (const int state : request.states()) {
    if (!qlora::v1::JobState_IsValid(state) ||
        state == qlora::v1::JOB_STATE_UNSPECIFIED) {
      return FieldError("states",
                        absl::StrCat("has ", state, ", which is no job state"));
    }
    filter.states.insert(static_cast<qlora::v1::JobState>(state));
  }
  filter.labels = {request.labels().begin(), request.labels().end()};
  ASSIGN_OR_RETURN(const auto after, ParsePageToken(request.page_token()));
  JobPage page = services.coordinator->ListJobs(filter, after, size);
  if (page.more) {
    response->set_next_page_token(PageToken(page.jobs.back()));
  }
  for (JobView& job : page.jobs) {
    *job.mutable_progress() = services.telemetry->Progress(job.job_id());
    *response->add_jobs() = std::move(job);
  }
  return absl::OkStatus();
}

// f(number, line) for each line of the job's metrics.
absl::Status ForEachLine(
    const JobLog& log, const std::string& job_id,
    const std::function<void(int64_t, const std::string&)>& f) {
  int64_t offset = 0, number = 0;
  while (true) {
    ASSIGN_OR_RETURN(const JobLog::Chunk chunk,
                     log.Read(job_id, LogKind::kMetrics, offset));
    if (chunk.next_offset == offset) return absl::OkStatus();
    offset = chunk.next_offset;
    for (const std::string& line : chunk.lines) f(number++, line);
  }
}

// The step of a point's line without parsing the rest of it; 0 if the line is
// none, or torn.
int64_t StepOf(const std::string& line) {
  constexpr absl::string_view kKey = "\"step\":";
  const size_t key = line.find(kKey.data());
  if (key == std::string::npos || line.back() != '}') return 0;
  // A number that protobuf's JSON has in quotes.
  const size_t begin = line.find_first_not_of(" \"", key + kKey.size());
  const size_t end = line.find_first_not_of("0123456789", begin);
  int64_t step = 0;
  return absl::SimpleAtoi(absl::string_view(line).substr(begin, end - begin),
                          &step)
             ? step
             : 0;
}

// In the order of their steps, the numbers of the lines that have the newest
// record of each.
absl::StatusOr<std::vector<int64_t>> NewestLines(const JobLog& log,
                                                 const std::string& job_id,
                                                 int64_t from_step) {
  struct Record {
    int64_t step, line;
  };
  std::vector<Record> records;
  RETURN_IF_ERROR(
      ForEachLine(log, job_id, [&](int64_t number, const std::string& line) {
        const int64_t step = StepOf(line);
        if (step >= std::max<int64_t>(1, from_step)) {
          records.push_back({step, number});
        }
      }));
  // Lines are in order already.
  std::stable_sort(
      records.begin(), records.end(),
      [](const Record& a, const Record& b) { return a.step < b.step; });
  std::vector<int64_t> lines;
  for (size_t i = 0; i < records.size(); ++i) {
    if (i + 1 < records.size() && records[i + 1].step == records[i].step) {
      continue;
    }
    lines.push_back(records[i].line);
  }
  return lines;
}

absl::Status Query(const ServiceContext& services,
                   const qlora::v1::QueryMetricsRequest& request,
                   qlora::v1::QueryMetricsResponse* response) {
  RETURN_IF_ERROR(CheckNotNegative("max_points", request.max_points()));
  RETURN_IF_ERROR(CheckNotNegative("from_step", request.from_step()));
  ASSIGN_OR_RETURN(const Job job,
                   services.coordinator->FindJob(request.job(),
                                                 ProjectOf(request.project())));
  const std::string& id = job.job().job_id();
  ASSIGN_OR_RETURN(const std::vector<int64_t> lines,
                   NewestLines(*services.log, id, request.from_step()));
  response->set_logged_points(static_cast<int64_t>(lines.size()));
  const size_t limit = request.max_points() == 0
                           ? kMaxPoints
                           : std::min<size_t>(request.max_points(), kMaxPoints);
  const size_t taken = std::min(lines.size(), limit);
  std::set<int64_t> chosen;
  for (size_t i = 0; i < taken; ++i) {
    // Evenly spaced, first and last included.
    chosen.insert(lines[taken > 1 ? i * (lines.size() - 1) / (taken - 1)
                                  : lines.size() - 1]);
  }
  // Of a long job most lines are not worth parsing.
  std::map<int64_t, qlora::v1::MetricPoint> points;
  RETURN_IF_ERROR(ForEachLine(
      *services.log, id, [&](int64_t number, const std::string& line) {
        qlora::v1::MetricPoint point;
        if (chosen.contains(number) &&
            google::protobuf::util::JsonStringToMessage(line, &point).ok()) {
          points[point.step()] = std::move(point);
        }
      }));
  for (auto& [step, point] : points) *response->add_points() = std::move(point);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JobView> ViewJob(const ServiceContext& services,
                                const std::string& reference,
                                const std::string& project) {
  ASSIGN_OR_RETURN(const Job job, services.coordinator->FindJob(
                                      reference, ProjectOf(project)));
  JobView view = job.job();
  *view.mutable_progress() = services.telemetry->Progress(view.job_id());
  return view;
}

grpc::ServerUnaryReactor* JobService::CreateJob(
    Context* context, const qlora::v1::CreateJobRequest* request,
    JobView* response) {
  return Reply(services_, context,
               [=, this] { return Create(services_, *request, response); });
}

grpc::ServerUnaryReactor* JobService::GetJob(
    Context* context, const qlora::v1::GetJobRequest* request,
    JobView* response) {
  return Reply(services_, context, [=, this]() -> absl::Status {
    ASSIGN_OR_RETURN(*response,
                     ViewJob(services_, request->job(), request->project()));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* JobService::ListJobs(
    Context* context, const qlora::v1::ListJobsRequest* request,
    qlora::v1::ListJobsResponse* response) {
  return Reply(services_, context,
               [=, this] { return List(services_, *request, response); });
}

grpc::ServerUnaryReactor* JobService::CancelJob(
    Context* context, const qlora::v1::CancelJobRequest* request,
    JobView* response) {
  return Reply(services_, context, [=, this]() -> absl::Status {
    if (request->reason().size() > kMaxReasonBytes) {
      return FieldError(
          "reason",
          absl::StrCat("has ", request->reason().size(), " bytes, at most ",
                       kMaxReasonBytes, " are allowed"));
    }
    return ChangeJob(
        services_, *request,
        [&](Draft& draft, const std::string& id) {
          return server::CancelJob(draft, id, request->reason());
        },
        response);
  });
}

grpc::ServerUnaryReactor* JobService::ResumeJob(
    Context* context, const qlora::v1::ResumeJobRequest* request,
    JobView* response) {
  return Reply(services_, context, [=, this] {
    return ChangeJob(services_, *request, server::ResumeJob, response);
  });
}

grpc::ServerUnaryReactor* JobService::DeleteJob(
    Context* context, const qlora::v1::DeleteJobRequest* request,
    qlora::v1::DeleteJobResponse*) {
  return Reply(services_, context, [=, this]() -> absl::Status {
    return MutateJob(services_, *request,
                     [](Draft& draft,
                        const std::string& id) -> absl::StatusOr<std::string> {
                       server::DeleteJob(draft, id);
                       return std::string();
                     })
        .status();
  });
}

grpc::ServerUnaryReactor* JobService::QueryMetrics(
    Context* context, const qlora::v1::QueryMetricsRequest* request,
    qlora::v1::QueryMetricsResponse* response) {
  return Reply(services_, context,
               [=, this] { return Query(services_, *request, response); });
}

}  // namespace qlora::server
