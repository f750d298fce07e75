#include "client/follower.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "client/render.h"

namespace qlora::client {
namespace {

// How long the last metrics may come in after the job's end.
constexpr absl::Duration kMetricsGrace = absl::Seconds(3);

}  // namespace

JobFollower::JobFollower(Connection& connection, std::string job,
                         std::string project)
    : connection_(connection),
      job_(std::move(job)),
      project_(std::move(project)),
      watcher_([this] { WatchLoop(); }),
      metrics_([this] { MetricsLoop(); }),
      events_([this] { EventsLoop(); }) {}

JobFollower::~JobFollower() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    for (grpc::ClientContext* context :
         {watch_context_, metrics_context_, events_context_}) {
      if (context != nullptr) context->TryCancel();
    }
    changed_.SignalAll();
  }
  watcher_.join();
  metrics_.join();
  events_.join();
}

JobFollower::Update JobFollower::Next(absl::Duration wait) {
  const absl::Time end = absl::Now() + wait;
  MutexLock lock(&mu_);
  while (!has_news_) {
    const absl::Duration left = end - absl::Now();
    if (left <= absl::ZeroDuration()) break;
    changed_.WaitWithTimeout(&mu_, left);
  }
  // How the metrics ended does not matter once the job has.
  if (terminal_) news_.error = absl::OkStatus();
  const bool late = watch_over_ && absl::Now() > watch_end_ + kMetricsGrace;
  news_.done = watch_over_ && (metrics_over_ || late || !news_.error.ok());
  Update update;
  update.connected = news_.connected;
  update.error = news_.error;
  std::swap(update, news_);
  has_news_ = false;
  if (!update.connected && !update.done) {
    // That it is back is told first: by the stream of the job.
    news_.points.swap(update.points);
    news_.events.swap(update.events);
  }
  return update;
}

bool JobFollower::Open(grpc::ClientContext* context,
                       grpc::ClientContext** slot) {
  MutexLock lock(&mu_);
  if (stopping_) return false;
  *slot = context;
  return true;
}

grpc::Status JobFollower::Close(grpc::Status status,
                                grpc::ClientContext** slot) {
  MutexLock lock(&mu_);
  *slot = nullptr;
  return status;
}

bool JobFollower::Again(const grpc::Status& status, bool watch) {
  MutexLock lock(&mu_);
  if (stopping_) return false;
  if (!status.ok() && !IsConnectionLoss(status)) {
    news_.error = connection_.ToStatus(status);
    return false;
  }
  // One stream speaks for both: its first message always comes at once.
  if (watch) news_.connected = status.ok();
  has_news_ = true;
  changed_.SignalAll();
  const absl::Time resume = absl::Now() + kReconnectPause;
  while (!stopping_ && absl::Now() < resume) {
    changed_.WaitWithTimeout(&mu_, resume - absl::Now());
  }
  return !stopping_;
}

bool JobFollower::job_ended() {
  MutexLock lock(&mu_);
  return terminal_;
}

void JobFollower::WatchLoop() {
  v1::WatchJobRequest request;
  request.set_job(job_);
  request.set_project(project_);
  while (true) {
    grpc::ClientContext context;
    if (!Open(&context, &watch_context_)) return;
    const auto reader = connection_.jobs().WatchJob(&context, request);
    v1::Job job;
    while (reader->Read(&job)) {
      MutexLock lock(&mu_);
      terminal_ = IsTerminal(job.state());
      news_.job = job;
      news_.connected = true;
      has_news_ = true;
      changed_.SignalAll();
    }
    const grpc::Status status = Close(reader->Finish(), &watch_context_);
    if (job_ended() || !Again(status, /*watch=*/true)) break;
  }
  MutexLock lock(&mu_);
  watch_over_ = true;
  watch_end_ = absl::Now();
  has_news_ = true;
  changed_.SignalAll();
}

template <typename Request, typename Record>
void JobFollower::ReadRecords(
    Request request, grpc::ClientContext** slot,
    std::unique_ptr<grpc::ClientReader<Record>> (v1::JobService::Stub::*open)(
        grpc::ClientContext*, const Request&),
    std::vector<Record> Update::*news) {
  request.set_job(job_);
  request.set_project(project_);
  while (true) {
    grpc::ClientContext context;
    if (!Open(&context, slot)) return;
    const auto reader = (connection_.jobs().*open)(&context, request);
    Record record;
    while (reader->Read(&record)) {
      request.set_from_offset(record.next_offset());
      MutexLock lock(&mu_);
      (news_.*news).push_back(record);
      has_news_ = true;
      changed_.SignalAll();
    }
    const grpc::Status status = Close(reader->Finish(), slot);
    // The stream's orderly end is the job's.
    if (status.ok() || !Again(status, /*watch=*/false)) return;
  }
}

void JobFollower::MetricsLoop() {
  ReadRecords(v1::StreamMetricsRequest(), &metrics_context_,
              &v1::JobService::Stub::StreamMetrics, &Update::points);
  MutexLock lock(&mu_);
  metrics_over_ = true;
  has_news_ = true;
  changed_.SignalAll();
}

void JobFollower::EventsLoop() {
  v1::StreamEventsRequest request;
  request.set_follow(true);
  ReadRecords(request, &events_context_, &v1::JobService::Stub::StreamEvents,
              &Update::events);
}

}  // namespace qlora::client
