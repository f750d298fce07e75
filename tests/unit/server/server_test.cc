// The whole coordinator over loopback: real services, real store, and a worker
// that speaks the stream.
#include "server_harness.h"

namespace qlora::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(ServerTest, Job_FromSubmitToOutput) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RUNNING);

  auto context = Deadline();
  v1::StreamMetricsRequest follow;
  follow.set_job(id);
  auto metrics = jobs_->StreamMetrics(context.get(), follow);
  v1::MetricPoint point;
  for (int64_t step = 1; step <= 3; ++step) {
    SendPoint(worker, id, step);
    ASSERT_TRUE(metrics->Read(&point));
    EXPECT_EQ(point.step(), step);
  }
  FinishJob(worker, id);
  EXPECT_FALSE(metrics->Read(&point));
  EXPECT_TRUE(metrics->Finish().ok());

  const v1::Job job = Get("test");
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(job.head_step(), 10);
  EXPECT_EQ(job.output_size(), 1);
  EXPECT_EQ(job.progress().step(), 3);
  EXPECT_EQ(Get("@last").job_id(), id);
  EXPECT_EQ(Get(id.substr(0, 6)).job_id(), id);

  v1::ListCheckpointsRequest list;
  list.set_job(id);
  v1::ListCheckpointsResponse checkpoints;
  ASSERT_TRUE(
      checkpoints_->ListCheckpoints(Deadline().get(), list, &checkpoints).ok());
  ASSERT_EQ(checkpoints.checkpoints_size(), 1);
  EXPECT_TRUE(checkpoints.checkpoints(0).head());
}

TEST_F(ServerTest, LogsAndEvents_AreFollowedToTheEnd) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  std::vector<std::string> events;
  std::thread follower([&] {
    auto context = Deadline();
    v1::StreamEventsRequest request;
    request.set_job(id);
    request.set_follow(true);
    auto stream = jobs_->StreamEvents(context.get(), request);
    v1::JobEvent event;
    while (stream->Read(&event)) events.push_back(event.type());
    EXPECT_TRUE(stream->Finish().ok());
  });
  for (int i = 0; i < 5; ++i) {
    worker.Send(id, 1, [&](auto& e) {
      e.mutable_log()->set_text("line " + std::to_string(i));
      e.mutable_log()->set_rank(i % 2);
    });
  }
  FinishJob(worker, id);
  follower.join();
  EXPECT_THAT(events, ElementsAre("Queued", "Placed", "Running",
                                  "CheckpointCommitted", "Succeeded"));
  v1::StreamLogsRequest request;
  request.set_job(id);
  request.set_rank(0);
  request.set_tail(2);
  auto context = Deadline();
  auto stream = jobs_->StreamLogs(context.get(), request);
  std::vector<std::string> lines;
  v1::LogLine line;
  while (stream->Read(&line)) lines.push_back(line.text());
  EXPECT_THAT(lines, ElementsAre("line 2", "line 4"));
}

// The first record of a stream, which is then given up. False without one.
template <typename Record, typename Open>
bool First(Record* record, Open open) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::seconds(20));
  const auto stream = open(&context);
  const bool read = stream->Read(record);
  context.TryCancel();
  stream->Finish();
  return read;
}

TEST_F(ServerTest, Records_FromAnOffset_GoOnBehindIt) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  for (int i = 0; i < 5; ++i) {
    worker.Send(id, 1, [&](auto& e) {
      e.mutable_log()->set_text("line " + std::to_string(i));
    });
    worker.AwaitAck(SendPoint(worker, id, i + 1));
  }
  FinishJob(worker, id);
  v1::StreamLogsRequest logs;
  logs.set_job(id);
  logs.set_all_ranks(true);
  // A tail means the first opening only.
  logs.set_tail(4);
  v1::StreamMetricsRequest metrics;
  metrics.set_job(id);
  v1::StreamEventsRequest events;
  events.set_job(id);
  v1::LogLine line;
  v1::MetricPoint point;
  std::vector<std::string> lines, types;
  std::vector<int64_t> steps;
  // Each stream is opened anew for each of its records.
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(First(&line, [&](grpc::ClientContext* context) {
      return jobs_->StreamLogs(context, logs);
    }));
    logs.set_from_offset(line.next_offset());
    lines.push_back(line.text());
    ASSERT_TRUE(First(&point, [&](grpc::ClientContext* context) {
      return jobs_->StreamMetrics(context, metrics);
    }));
    metrics.set_from_offset(point.next_offset());
    steps.push_back(point.step());
  }
  EXPECT_THAT(lines, ElementsAre("line 1", "line 2", "line 3", "line 4"));
  EXPECT_THAT(steps, ElementsAre(1, 2, 3, 4));
  v1::JobEvent event;
  while (First(&event, [&](grpc::ClientContext* context) {
    return jobs_->StreamEvents(context, events);
  })) {
    events.set_from_offset(event.next_offset());
    types.push_back(event.type());
  }
  EXPECT_THAT(types, ElementsAre("Queued", "Placed", "Running",
                                 "CheckpointCommitted", "Succeeded"));
}

TEST_F(ServerTest, SameRequestId_ActsOnce) {
  const v1::CreateJobRequest request = Request("r1");
  v1::Job first, second;
  ASSERT_TRUE(Create(request, &first).ok());
  ASSERT_TRUE(Create(request, &second).ok());
  EXPECT_EQ(first.job_id(), second.job_id());
  StartServer();
  ASSERT_TRUE(Create(request, &second).ok());
  EXPECT_EQ(first.job_id(), second.job_id());
  v1::Job other;
  EXPECT_EQ(Create(Request("r1", "priority: 60\n"), &other).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  v1::DeleteJobRequest erase;
  erase.set_request_id("r2");
  erase.set_job(first.job_id());
  v1::DeleteJobResponse gone;
  EXPECT_TRUE(jobs_->DeleteJob(Deadline().get(), erase, &gone).ok());
  EXPECT_TRUE(jobs_->DeleteJob(Deadline().get(), erase, &gone).ok());
  erase.set_request_id("r3");
  EXPECT_EQ(jobs_->DeleteJob(Deadline().get(), erase, &gone).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServerTest, HeldJob_IsResumedOnceForEachRequest) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  v1::Job job;
  grpc::Status status = Resume("r2", id, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(),
              HasSubstr(id + " is RUNNING: only a HELD job can be resumed"));
  const v1::ArtifactFile file = Upload("manifest.json", "{}");
  worker.Send(id, 1, [&](auto& e) {
    e.mutable_staged()->set_step(4);
    *e.mutable_staged()->add_files() = file;
  });
  worker.AwaitAck(worker.Send(id, 1, [](auto& e) {
    e.mutable_ended()->set_failure_class(v1::FAILURE_CLASS_DISK);
    e.mutable_ended()->set_message("/data: No space left on device");
  }));
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_HELD);
  EXPECT_EQ(Get(id).hint(), "qloractl resume " + id +
                                "  # after making space where the reason says");
  StartServer();
  worker.Disconnect();
  status = Resume("r3", "@last", &job);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(job.state(), v1::JOB_STATE_QUEUED);
  ASSERT_TRUE(Resume("r3", "@last", &job).ok());
  EXPECT_EQ(Resume("r4", id, &job).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  worker.Connect();
  const auto prepare = worker.AwaitCommand().prepare();
  EXPECT_EQ(prepare.attempt(), 2);
  EXPECT_EQ(prepare.resume_step(), 4);
  ASSERT_EQ(prepare.resume_files_size(), 1);
  EXPECT_EQ(prepare.resume_files(0).sha256(), file.sha256());
  EXPECT_THAT(Get(id).last_failure().message(), HasSubstr("No space left"));
}

TEST_F(ServerTest, CheckpointWhoseFilesAreGone_IsNotCommitted) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  worker.AwaitAck(worker.Send(id, 1, [](auto& e) {
    e.mutable_staged()->set_step(4);
    auto& file = *e.mutable_staged()->add_files();
    file.set_path("manifest.json");
    file.set_sha256(Sha256Hex("collected meanwhile"));
    file.set_size_bytes(19);
  }));
  EXPECT_EQ(Get(id).head_step(), 0);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RUNNING);
  v1::StreamEventsRequest request;
  request.set_job(id);
  auto context = Deadline();
  auto stream = jobs_->StreamEvents(context.get(), request);
  v1::JobEvent event;
  std::string lost;
  while (stream->Read(&event)) {
    if (event.type() == "CheckpointLost") lost = event.message();
  }
  EXPECT_THAT(lost, HasSubstr("step 4 was not committed: manifest.json"));
}

TEST_F(ServerTest, GetVersion_IsTheBuilds) {
  const auto stub = v1::ServerService::NewStub(grpc::CreateChannel(
      server_->grpc_address(), grpc::InsecureChannelCredentials()));
  v1::GetVersionResponse version;
  ASSERT_TRUE(
      stub->GetVersion(Deadline().get(), v1::GetVersionRequest(), &version)
          .ok());
  EXPECT_THAT(version.version(), ::testing::MatchesRegex("[0-9.]+"));
}

// Long before its lease is over.
TEST_F(ServerTest, Cancel_OfAJobWhoseNodeIsGone_EndsAtOnce) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  worker.Disconnect();
  v1::CancelJobRequest request;
  request.set_request_id("c1");
  request.set_job(id);
  v1::Job job;
  ASSERT_TRUE(jobs_->CancelJob(Deadline().get(), request, &job).ok());
  v1::WatchJobRequest watch;
  watch.set_job(id);
  const auto context = Deadline();
  const auto stream = jobs_->WatchJob(context.get(), watch);
  while (stream->Read(&job)) {
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(job.state(), v1::JOB_STATE_CANCELLED);
  EXPECT_THAT(job.reason(), HasSubstr("unreachable: n1 (silent since "));
  worker.Connect({{id, 1}});
  EXPECT_EQ(worker.welcome.decisions(0).action(), v1::Decision::ACTION_KILL);
}

TEST_F(ServerTest, DeleteNode_ForgetsOneThatIsGone) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.Connect();
  v1::DeleteNodeRequest request;
  request.set_request_id("r1");
  request.set_name("n1");
  v1::DeleteNodeResponse response;
  EXPECT_EQ(
      nodes_->DeleteNode(Deadline().get(), request, &response).error_code(),
      grpc::StatusCode::FAILED_PRECONDITION);
  StartServer();
  worker.Disconnect();
  // The second one finds the first one's result.
  for (int i = 0; i < 2; ++i) {
    const grpc::Status removed =
        nodes_->DeleteNode(Deadline().get(), request, &response);
    EXPECT_TRUE(removed.ok()) << removed.error_message();
  }
  v1::ListNodesResponse list;
  ASSERT_TRUE(nodes_->ListNodes(Deadline().get(), {}, &list).ok());
  EXPECT_EQ(list.nodes_size(), 0);
  worker.Connect();
  ASSERT_TRUE(nodes_->ListNodes(Deadline().get(), {}, &list).ok());
  EXPECT_EQ(list.nodes_size(), 1);
}

TEST_F(ServerTest, Restart_KeepsTheAttemptAndRepeatsNothing) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  worker.AwaitAck(SendPoint(worker, id, 1));
  const uint64_t last = worker.last_event;
  const int64_t term = worker.welcome.term();
  StartServer();
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RUNNING);
  worker.Disconnect();
  worker.Connect({{id, 1}});
  EXPECT_GT(worker.welcome.term(), term);
  EXPECT_EQ(worker.welcome.resend_from(), last + 1);
  ASSERT_EQ(worker.welcome.decisions_size(), 1);
  EXPECT_EQ(worker.welcome.decisions(0).action(), v1::Decision::ACTION_KEEP);
  SendPoint(worker, id, 2);
  // What was acknowledged already is dropped.
  worker.last_event = last - 1;
  SendPoint(worker, id, 1);
  worker.last_event = last + 1;
  FinishJob(worker, id);
  v1::QueryMetricsRequest query;
  query.set_job(id);
  v1::QueryMetricsResponse points;
  ASSERT_TRUE(jobs_->QueryMetrics(Deadline().get(), query, &points).ok());
  EXPECT_EQ(points.points_size(), 2);
  query.set_max_points(1);
  ASSERT_TRUE(jobs_->QueryMetrics(Deadline().get(), query, &points).ok());
  EXPECT_EQ(points.points_size(), 1);
  EXPECT_EQ(points.logged_points(), 2);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_SUCCEEDED);
}

TEST_F(ServerTest, StagedFiles_GrowYoungOrTheShareIsDropped) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  const v1::ArtifactFile kept = Upload("weights", "uploaded long ago");
  const std::string object = options_.data_dir + "/artifacts/objects/" +
                             kept.sha256().substr(0, 2) + "/" +
                             kept.sha256().substr(2);
  const auto past =
      std::filesystem::last_write_time(object) - std::chrono::hours(24);
  std::filesystem::last_write_time(object, past);
  v1::ArtifactFile gone = kept;
  gone.set_sha256(Sha256Hex("collected"));
  const auto stage = [&](int64_t step, const v1::ArtifactFile& other) {
    worker.AwaitAck(worker.Send(id, 1, [&](auto& e) {
      auto& staged = *e.mutable_staged();
      staged.set_step(step);
      *staged.add_files() = kept;
      *staged.add_files() = other;
    }));
  };
  stage(4, gone);
  EXPECT_EQ(Get(id).head_step(), 0);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RUNNING);
  EXPECT_GT(std::filesystem::last_write_time(object), past);
  v1::ArtifactFile again = kept;
  again.set_path("more weights");
  stage(5, again);
  EXPECT_EQ(Get(id).head_step(), 5);
}

TEST_F(ServerTest, Start_CollectsNothingBeforeWorkersAreBack) {
  const v1::ArtifactFile file = Upload("weights", "not acknowledged yet");
  options_.artifact_grace = absl::ZeroDuration();
  StartServer();
  // Some ticks.
  absl::SleepFor(absl::Seconds(1));
  v1::StatArtifactRequest request;
  request.set_sha256(file.sha256());
  v1::StatArtifactResponse response;
  ASSERT_TRUE(
      artifacts_->StatArtifact(Deadline().get(), request, &response).ok());
  EXPECT_TRUE(response.complete());
}

TEST_F(ServerTest, JobWithMoreFilesThanACommandHolds_IsRefused) {
  v1::CreateJobRequest request = Request("r1");
  auto& files = *request.mutable_inputs(0)->mutable_files();
  const v1::ArtifactFile file = files[0];
  for (int i = 0; i < 12'000; ++i) {
    v1::ArtifactFile& more = *files.Add();
    more = file;
    more.set_path(std::string(100, 'd') + std::to_string(i));
  }
  v1::Job job;
  const grpc::Status status = Create(request, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("into fewer files"));
}

TEST_F(ServerTest, ManyErrors_AreCutToWhatATrailerHolds) {
  std::string text;
  for (int i = 0; i < 2'000; ++i) {
    text += "\"schlüssel %" + std::to_string(i) + "\": 1\n";
  }
  v1::Job job;
  const grpc::Status status = Create(Request("r1", text), &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("schlüssel %0"));
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.message(), status.error_message());
  google::rpc::BadRequest bad;
  ASSERT_TRUE(bad.ParseFromString(details.details(0).value()));
  EXPECT_GT(bad.field_violations_size(), 0);
}

TEST_F(ServerTest, Metrics_AreThinnedKeepingFirstAndLast) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  for (int64_t step = 1; step <= 100; ++step) SendPoint(worker, id, step);
  worker.AwaitAck(worker.last_event);
  v1::QueryMetricsRequest query;
  query.set_job(id);
  query.set_max_points(5);
  v1::QueryMetricsResponse points;
  ASSERT_TRUE(jobs_->QueryMetrics(Deadline().get(), query, &points).ok());
  ASSERT_EQ(points.points_size(), 5);
  EXPECT_EQ(points.points(0).step(), 1);
  EXPECT_EQ(points.points(4).step(), 100);
}

TEST_F(ServerTest, BrokenProtocol_EndsTheStream) {
  FakeWorker worker(server_->grpc_address(), "bad name", 1);
  worker.Connect();
  EXPECT_EQ(worker.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  FakeWorker first(server_->grpc_address(), "n1", 1);
  first.Connect();
  FakeWorker second(server_->grpc_address(), "n1", 1);
  second.boot = "boot-2";
  second.Connect();
  EXPECT_EQ(second.Finish().error_code(), grpc::StatusCode::ALREADY_EXISTS);
  FakeWorker newer(server_->grpc_address(), "n1", 1);
  newer.cluster_id = first.cluster_id;
  newer.Connect();
  EXPECT_EQ(first.Finish().error_code(), grpc::StatusCode::ABORTED);
  newer.Heartbeat();
}

TEST_F(ServerTest, Generate_StreamsFromAWorkerAndEndsWithIt) {
  v1::GenerateRequest request;
  request.set_model(ModelDir());
  request.set_prompt("once");
  v1::GenerateResponse piece;
  // The model has no weights.
  auto refused_context = Deadline();
  auto refused = jobs_->Generate(refused_context.get(), request);
  EXPECT_FALSE(refused->Read(&piece));
  EXPECT_EQ(refused->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.model_roots = {"/elsewhere"};
  worker.Connect();
  request.set_model("/elsewhere/model");
  auto context = Deadline();
  auto stream = jobs_->Generate(context.get(), request);
  const auto task = worker.AwaitCommand().run_task();
  EXPECT_EQ(task.model().directory(), "/elsewhere/model");
  for (const char* text : {"upon", " a", " time"}) {
    worker.Send("", 0, [&](auto& e) {
      auto& output = *e.mutable_task_output();
      output.set_task_id(task.task_id());
      output.mutable_event()->mutable_generated()->set_text(text);
    });
    ASSERT_TRUE(stream->Read(&piece));
    EXPECT_EQ(piece.text(), text);
  }
  worker.Send("", 0, [&](auto& e) {
    e.mutable_task_output()->set_task_id(task.task_id());
    e.mutable_task_output()->set_done(true);
  });
  EXPECT_FALSE(stream->Read(&piece));
  EXPECT_TRUE(stream->Finish().ok());

  // A caller that goes away cancels; a node that goes away fails the call.
  auto gone = Deadline();
  auto second = jobs_->Generate(gone.get(), request);
  const auto cancelled = worker.AwaitCommand().run_task();
  gone->TryCancel();
  EXPECT_EQ(worker.AwaitCommand().cancel_task().task_id(), cancelled.task_id());
  (void)second->Finish();
  auto left = Deadline();
  auto third = jobs_->Generate(left.get(), request);
  worker.AwaitCommand();
  worker.Disconnect();
  EXPECT_FALSE(third->Read(&piece));
  EXPECT_EQ(third->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, Verify_ReadsTheDataAsTheJobDid) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  FinishJob(worker, id);
  v1::VerifyAdapterRequest request;
  request.set_job(id);
  v1::VerifyAdapterResponse response;
  auto verified = std::async(std::launch::async, [&] {
    return jobs_->VerifyAdapter(Deadline().get(), request, &response);
  });
  const auto task = worker.AwaitCommand().run_task();
  EXPECT_EQ(task.task().mode(), v1::TRAINER_MODE_EVAL);
  EXPECT_EQ(task.task().job_create_time().seconds(),
            Get(id).create_time().seconds());
  worker.Send("", 0, [&](auto& e) {
    auto& output = *e.mutable_task_output();
    output.set_task_id(task.task_id());
    output.mutable_event()->mutable_eval()->set_loss(2);
    output.mutable_event()->mutable_eval()->set_recorded_loss(2);
  });
  worker.Send("", 0, [&](auto& e) {
    e.mutable_task_output()->set_task_id(task.task_id());
    e.mutable_task_output()->set_done(true);
  });
  EXPECT_TRUE(verified.get().ok());
  EXPECT_TRUE(response.passed());
}

TEST_F(ServerTest, Plan_WithoutAWorkerIsUnavailable) {
  v1::PlanJobRequest request;
  const v1::CreateJobRequest job = Request("r1");
  request.set_job_file(job.job_file());
  *request.mutable_inputs() = job.inputs();
  v1::PlanJobResponse response;
  EXPECT_EQ(jobs_->PlanJob(Deadline().get(), request, &response).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, Download_GoesOnFromAnOffset) {
  const v1::ArtifactFile file = Upload("f", std::string(1 << 20, 'c'));
  v1::DownloadArtifactRequest request;
  request.set_sha256(file.sha256());
  request.set_offset(1 << 19);
  auto context = Deadline();
  auto stream = artifacts_->DownloadArtifact(context.get(), request);
  v1::DownloadArtifactResponse response;
  int64_t bytes = 0;
  while (stream->Read(&response)) {
    bytes += static_cast<int64_t>(response.data().size());
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(bytes, 1 << 19);
}

TEST_F(ServerTest, SecondServer_IsRefused) {
  ServerOptions same = options_;
  same.listen = "127.0.0.1:0";
  EXPECT_EQ(Server::Start(same).status().code(),
            absl::StatusCode::kFailedPrecondition);
  ServerOptions metrics = options_;
  metrics.data_dir = dir_.path() + "/other";
  metrics.listen = "127.0.0.1:0";
  metrics.metrics_listen = server_->metrics_address();
  const absl::Status taken = Server::Start(metrics).status();
  EXPECT_EQ(taken.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(taken.message()), HasSubstr("--metrics-listen"));
  ServerOptions port = options_;
  port.data_dir = dir_.path() + "/other";
  EXPECT_EQ(Server::Start(port).status().code(),
            absl::StatusCode::kUnavailable);
  ServerOptions open = options_;
  open.listen = "0.0.0.0:0";
  EXPECT_EQ(Server::Start(open).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace qlora::server
