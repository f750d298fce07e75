// A coordinator's services in this process, over real gRPC on a loopback port,
// that fail in the way a test asks for.
#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/mutex.h"
#include "common/base/sha256.h"
#include "qlora/v1/artifact.grpc.pb.h"
#include "qlora/v1/job.grpc.pb.h"
#include "qlora/v1/node.grpc.pb.h"

namespace qlora::client {

// Keeps artifacts in memory. Breaks off after `break_after` bytes of an upload
// or download, `breaks` times.
class FakeArtifacts final : public v1::ArtifactService::Service {
 public:
  grpc::Status StatArtifact(grpc::ServerContext*,
                            const v1::StatArtifactRequest* request,
                            v1::StatArtifactResponse* response) override {
    MutexLock lock(&mu_);
    const std::string& data = data_[request->sha256()];
    response->set_size_bytes(static_cast<int64_t>(data.size()));
    response->set_complete(Sha256Hex(data) == request->sha256());
    return grpc::Status::OK;
  }

  grpc::Status UploadArtifact(
      grpc::ServerContext*,
      grpc::ServerReader<v1::UploadArtifactRequest>* reader,
      v1::UploadArtifactResponse* response) override {
    v1::UploadArtifactRequest request;
    std::string sha;
    while (reader->Read(&request)) {
      MutexLock lock(&mu_);
      if (sha.empty()) sha = request.sha256();
      largest_chunk_ = std::max(largest_chunk_, request.data().size());
      std::string& data = data_[sha];
      if (request.offset() != static_cast<int64_t>(data.size())) {
        return {grpc::StatusCode::OUT_OF_RANGE, "not the end"};
      }
      data += request.data();
      received_ += request.data().size();
      if (breaks > 0 && data.size() >= break_after) {
        --breaks;
        return {grpc::StatusCode::UNAVAILABLE, "broken off"};
      }
    }
    MutexLock lock(&mu_);
    response->set_size_bytes(static_cast<int64_t>(data_[sha].size()));
    return grpc::Status::OK;
  }

  grpc::Status DownloadArtifact(
      grpc::ServerContext*, const v1::DownloadArtifactRequest* request,
      grpc::ServerWriter<v1::DownloadArtifactResponse>* writer) override {
    MutexLock lock(&mu_);
    const std::string& data = data_[request->sha256()];
    for (size_t at = request->offset(); at < data.size(); at += 1000) {
      if (breaks > 0 && at >= break_after) {
        --breaks;
        return {grpc::StatusCode::UNAVAILABLE, "broken off"};
      }
      v1::DownloadArtifactResponse response;
      response.set_offset(static_cast<int64_t>(at));
      response.set_data(data.substr(at, 1000));
      writer->Write(response);
    }
    return grpc::Status::OK;
  }

  // Returns what it is called.
  v1::ArtifactFile Put(const std::string& path, const std::string& content) {
    MutexLock lock(&mu_);
    v1::ArtifactFile file;
    file.set_path(path);
    file.set_sha256(Sha256Hex(content));
    file.set_size_bytes(static_cast<int64_t>(content.size()));
    data_[file.sha256()] = content;
    return file;
  }
  // Replaces the bytes behind a name.
  void Damage(const v1::ArtifactFile& file, const std::string& content) {
    MutexLock lock(&mu_);
    data_[file.sha256()] = content;
  }
  size_t received() {
    MutexLock lock(&mu_);
    return received_;
  }
  size_t largest_chunk() {
    MutexLock lock(&mu_);
    return largest_chunk_;
  }

  std::atomic<int> breaks = 0;
  std::atomic<size_t> break_after = 0;

 private:
  Mutex mu_;
  std::map<std::string, std::string> data_ ABSL_GUARDED_BY(mu_);
  size_t received_ ABSL_GUARDED_BY(mu_) = 0;
  size_t largest_chunk_ ABSL_GUARDED_BY(mu_) = 0;
};

// One job, j-1, that runs for `points` steps, logs a line and has an event at
// each. The streams break off `breaks` times after a message.
class FakeJobs final : public v1::JobService::Service {
 public:
  grpc::Status CancelJob(grpc::ServerContext*,
                         const v1::CancelJobRequest* request,
                         v1::Job* response) override {
    if (request->job() == "j-none") {
      return {grpc::StatusCode::NOT_FOUND, "no job j-none"};
    }
    MutexLock lock(&mu_);
    request_ids_.push_back(request->request_id());
    if (lose_responses_ > 0) {
      --lose_responses_;
      return {grpc::StatusCode::UNAVAILABLE, "answer lost"};
    }
    response->set_job_id("j-1");
    response->set_state(v1::JOB_STATE_CANCELLING);
    return grpc::Status::OK;
  }

  grpc::Status ResumeJob(grpc::ServerContext*,
                         const v1::ResumeJobRequest* request,
                         v1::Job* response) override {
    response->set_job_id(request->job());
    response->set_state(v1::JOB_STATE_QUEUED);
    return grpc::Status::OK;
  }

  grpc::Status DeleteJob(grpc::ServerContext*, const v1::DeleteJobRequest*,
                         v1::DeleteJobResponse*) override {
    return grpc::Status::OK;
  }

  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                      v1::Job* response) override {
    if (request->job() != "j-1" && request->job() != "@last") {
      return {grpc::StatusCode::NOT_FOUND, "no job " + request->job()};
    }
    if (broken_ && away-- > 0) {
      return {grpc::StatusCode::UNAVAILABLE, "restarting"};
    }
    response->set_job_id("j-1");
    response->set_state(state);
    return grpc::Status::OK;
  }

  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest*,
                        grpc::ServerWriter<v1::Job>* writer) override {
    v1::Job job;
    job.set_job_id("j-1");
    job.set_state(state);
    writer->Write(job);
    if (watch_breaks-- > 0) {
      return {grpc::StatusCode::UNAVAILABLE, "restarting"};
    }
    writer->Write(last);
    return grpc::Status::OK;
  }

  grpc::Status StreamLogs(grpc::ServerContext*,
                          const v1::StreamLogsRequest* request,
                          grpc::ServerWriter<v1::LogLine>* writer) override {
    return Records<v1::LogLine>(
        *request, *writer, [](int64_t step, v1::LogLine& line) {
          line.set_text("line " + std::to_string(step) + ";");
        });
  }

  grpc::Status StreamEvents(grpc::ServerContext*,
                            const v1::StreamEventsRequest* request,
                            grpc::ServerWriter<v1::JobEvent>* writer) override {
    return Records<v1::JobEvent>(
        *request, *writer, [this](int64_t step, v1::JobEvent& event) {
          const auto warning = warnings.find(step);
          const bool warns = warning != warnings.end();
          event.set_type(warns ? "Warning" : "Event");
          event.set_message(warns ? warning->second
                                  : "event " + std::to_string(step) + ";");
        });
  }

  grpc::Status QueryMetrics(grpc::ServerContext*,
                            const v1::QueryMetricsRequest* request,
                            v1::QueryMetricsResponse* response) override {
    const int64_t limit =
        request->max_points() > 0 ? request->max_points() : answer_holds;
    for (int64_t step = 1; step <= std::min(points, limit); ++step) {
      response->add_points()->set_step(step);
    }
    response->set_logged_points(points);
    return grpc::Status::OK;
  }

  grpc::Status StreamMetrics(
      grpc::ServerContext*, const v1::StreamMetricsRequest* request,
      grpc::ServerWriter<v1::MetricPoint>* writer) override {
    const grpc::Status status = Records<v1::MetricPoint>(
        *request, *writer, [this](int64_t step, v1::MetricPoint& point) {
          const bool again = step > attempt_ends_at;
          point.set_step(again ? step - attempt_ends_at : step);
          point.set_attempt(again ? 2 : 1);
        });
    if (status.ok() && !metrics_readable) {
      return {grpc::StatusCode::INTERNAL, "damaged"};
    }
    return status;
  }

  void LoseResponses(int count) {
    MutexLock lock(&mu_);
    lose_responses_ = count;
  }
  std::vector<std::string> request_ids() {
    MutexLock lock(&mu_);
    return request_ids_;
  }

  FakeJobs() {
    last.set_job_id("j-1");
    last.set_state(v1::JOB_STATE_SUCCEEDED);
  }

  // What GetJob says.
  v1::JobState state = v1::JOB_STATE_RUNNING;
  int64_t points = 5;
  // Points of QueryMetrics.
  int64_t answer_holds = 1000;
  // A second attempt counts the points behind this one from 1 again.
  int64_t attempt_ends_at = 1'000'000'000;
  // Steps whose event is a warning, and what it says.
  std::map<int64_t, std::string> warnings;
  // How the job ends, or rests.
  v1::Job last;
  std::atomic<int> watch_breaks = 0;
  bool metrics_readable = true;
  // Of the streams of records, each with this status.
  std::atomic<int> record_breaks = 0;
  std::atomic<grpc::StatusCode> broken_with = grpc::StatusCode::UNAVAILABLE;
  // Calls of GetJob that fail, once a stream of records broke off.
  std::atomic<int> away = 0;

 private:
  // The records behind from_offset, ten bytes each.
  template <typename Record, typename Request, typename Fill>
  grpc::Status Records(const Request& request,
                       grpc::ServerWriter<Record>& writer, Fill fill) {
    for (int64_t step = request.from_offset() / 10 + 1; step <= points;
         ++step) {
      Record record;
      fill(step, record);
      record.set_next_offset(step * 10);
      writer.Write(record);
      if (record_breaks-- <= 0) continue;
      broken_ = true;
      return {broken_with.load(), "restarting"};
    }
    return grpc::Status::OK;
  }

  std::atomic<bool> broken_ = false;
  Mutex mu_;
  int lose_responses_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::string> request_ids_ ABSL_GUARDED_BY(mu_);
};

// One node with the given model roots.
class FakeNodes final : public v1::NodeService::Service {
 public:
  grpc::Status ListNodes(grpc::ServerContext*, const v1::ListNodesRequest*,
                         v1::ListNodesResponse* response) override {
    v1::Node& node = *response->add_nodes();
    node.mutable_model_roots()->Assign(roots.begin(), roots.end());
    return grpc::Status::OK;
  }

  // Set before the first call.
  std::vector<std::string> roots;
};

class FakeServer {
 public:
  FakeServer() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port);
    builder.RegisterService(&artifacts);
    builder.RegisterService(&jobs);
    builder.RegisterService(&nodes);
    server_ = builder.BuildAndStart();
    endpoint = "127.0.0.1:" + std::to_string(port);
  }
  ~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

  FakeArtifacts artifacts;
  FakeJobs jobs;
  FakeNodes nodes;
  std::string endpoint;

 private:
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace qlora::client
