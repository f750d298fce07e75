// Watches one job, its metrics and its events, over restarts of the
// coordinator, until the job ends.
//
// Threads: three of its own read the streams; Next and the destructor are for
// one thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/connection.h"
#include "common/base/mutex.h"
#include "qlora/v1/job.pb.h"

namespace qlora::client {

class JobFollower {
 public:
  // connection must outlive the follower.
  JobFollower(Connection& connection, std::string job, std::string project);
  // Cancels the streams and joins.
  ~JobFollower();
  JobFollower(const JobFollower&) = delete;
  JobFollower& operator=(const JobFollower&) = delete;

  struct Update {
    // Set if the job changed since the last call.
    std::optional<v1::Job> job;
    // Points that came since the last call; none while not connected.
    std::vector<v1::MetricPoint> points;
    // Events likewise; the job's end does not wait for the last ones.
    std::vector<v1::JobEvent> events;
    // False while the coordinator cannot be reached; tried again meanwhile.
    bool connected = true;
    // Nothing more will come: the job ended, or `error` says why not. The job's
    // end counts more than an error of the metrics.
    bool done = false;
    absl::Status error;
  };

  // Waits until there is news, at most `wait`.
  Update Next(absl::Duration wait);

 private:
  void WatchLoop();
  // Reads records behind the last one, over breaks, to the stream's end.
  template <typename Request, typename Record>
  void ReadRecords(Request request, grpc::ClientContext** slot,
                   std::unique_ptr<grpc::ClientReader<Record>> (
                       v1::JobService::Stub::*open)(grpc::ClientContext*,
                                                    const Request&),
                   std::vector<Record> Update::*news);
  void MetricsLoop();
  void EventsLoop();
  // Stores the context so that the destructor can cancel it; false when
  // stopping.
  bool Open(grpc::ClientContext* context, grpc::ClientContext** slot);
  // The context is about to go: the destructor must not find it. Gives status.
  grpc::Status Close(grpc::Status status, grpc::ClientContext** slot);
  // Notes how a stream ended. True if it is to be opened again, after a pause.
  bool Again(const grpc::Status& status, bool watch);
  bool job_ended();

  Connection& connection_;
  const std::string job_;
  const std::string project_;

  Mutex mu_;
  CondVar changed_;
  Update news_ ABSL_GUARDED_BY(mu_);
  bool has_news_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool watch_over_ ABSL_GUARDED_BY(mu_) = false;
  bool metrics_over_ ABSL_GUARDED_BY(mu_) = false;
  bool terminal_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time watch_end_ ABSL_GUARDED_BY(mu_);
  grpc::ClientContext* watch_context_ ABSL_GUARDED_BY(mu_) = nullptr;
  grpc::ClientContext* metrics_context_ ABSL_GUARDED_BY(mu_) = nullptr;
  grpc::ClientContext* events_context_ ABSL_GUARDED_BY(mu_) = nullptr;
  // Last, so that they see everything else alive.
  std::thread watcher_;
  std::thread metrics_;
  std::thread events_;
};

}  // namespace qlora::client
