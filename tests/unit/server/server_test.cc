// The whole coordinator over loopback: real services, real store, and a worker
// that speaks the stream.
#include "server/server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <future>
#include <thread>

#include "common/base/sha256.h"
#include "common/formats/safetensors.h"
#include "core_harness.h"
#include "fake_worker.h"
#include "google/rpc/status.pb.h"
#include "qlora/v1/artifact.grpc.pb.h"
#include "qlora/v1/checkpoint.grpc.pb.h"
#include "qlora/v1/dataset.grpc.pb.h"
#include "qlora/v1/job.grpc.pb.h"
#include "qlora/v1/model.grpc.pb.h"
#include "qlora/v1/server.grpc.pb.h"

namespace qlora::server {
namespace {

namespace v1 = qlora::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kModelConfig[] = R"({"architectures": ["LlamaForCausalLM"],
  "model_type": "llama", "vocab_size": 64, "hidden_size": 16,
  "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 2, "max_position_embeddings": 64,
  "rms_norm_eps": 1e-5, "hidden_act": "silu"})";

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() {
    options_.data_dir = dir_.path() + "/data";
    options_.listen = options_.metrics_listen = "127.0.0.1:0";
    options_.model_roots = {dir_.path() + "/models"};
    EXPECT_TRUE(CreateDirectories(ModelDir()).ok());
    EXPECT_TRUE(
        WriteFileAtomically(ModelDir() + "/config.json", kModelConfig).ok());
    StartServer();
  }
  void StartServer() {
    server_.reset();
    auto server = Server::Start(options_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    // Again the same port, as a restarted service has.
    options_.listen = server_->grpc_address();
    auto channel = grpc::CreateChannel(server_->grpc_address(),
                                       grpc::InsecureChannelCredentials());
    jobs_ = v1::JobService::NewStub(channel);
    artifacts_ = v1::ArtifactService::NewStub(channel);
    datasets_ = v1::DatasetService::NewStub(channel);
    models_ = v1::ModelService::NewStub(channel);
    checkpoints_ = v1::CheckpointService::NewStub(channel);
  }
  std::string ModelDir() const { return dir_.path() + "/models/tiny"; }

  static std::unique_ptr<grpc::ClientContext> Deadline() {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() +
                          std::chrono::seconds(20));
    context->set_wait_for_ready(true);
    return context;
  }

  v1::ArtifactFile Upload(const std::string& path, const std::string& content) {
    auto context = Deadline();
    v1::UploadArtifactResponse response;
    auto writer = artifacts_->UploadArtifact(context.get(), &response);
    v1::UploadArtifactRequest request;
    request.set_sha256(Sha256Hex(content));
    request.set_total_bytes(static_cast<int64_t>(content.size()));
    request.set_data(content);
    writer->Write(request);
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    v1::ArtifactFile file;
    file.set_path(path);
    file.set_sha256(Sha256Hex(content));
    file.set_size_bytes(static_cast<int64_t>(content.size()));
    return file;
  }

  // A job that starts from random weights and trains on an uploaded file.
  v1::CreateJobRequest Request(const std::string& id,
                               const std::string& more = "") {
    v1::CreateJobRequest request;
    request.set_request_id(id);
    request.set_job_file(
        "apiVersion: qlora/v1\nname: test\nmethod: full\n"
        "model: {base: " +
        ModelDir() +
        ", init: random}\n"
        "data: {train: [{path: rows.jsonl, format: tokens}], "
        "max_seq_len: 16}\n" +
        more);
    auto& input = *request.add_inputs();
    input.set_path("rows.jsonl");
    *input.add_files() = Upload("rows.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
    return request;
  }
  grpc::Status Create(const v1::CreateJobRequest& request, v1::Job* job) {
    return jobs_->CreateJob(Deadline().get(), request, job);
  }
  v1::Job Submit(const std::string& id) {
    v1::Job job;
    const grpc::Status status = Create(Request(id), &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  v1::Job Get(const std::string& reference) {
    v1::GetJobRequest request;
    request.set_job(reference);
    v1::Job job;
    const grpc::Status status = jobs_->GetJob(Deadline().get(), request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }

  // From Prepare to RUNNING; returns the job's id.
  std::string RunJob(FakeWorker& worker, const std::string& request_id) {
    const std::string id = Submit(request_id).job_id();
    const v1::WorkerCommand prepare = worker.AwaitCommand();
    EXPECT_EQ(prepare.prepare().job_id(), id);
    EXPECT_EQ(prepare.prepare().inputs(0).path(), "rows.jsonl");
    worker.Send(id, 1, [](auto& e) {
      e.mutable_prepared()->set_rendezvous_address("127.0.0.1:9");
    });
    EXPECT_EQ(worker.AwaitCommand().start().rendezvous_address(),
              "127.0.0.1:9");
    worker.AwaitAck(worker.Send(id, 1, [](auto& e) { e.mutable_running(); }));
    return id;
  }
  uint64_t SendPoint(FakeWorker& worker, const std::string& id, int64_t step) {
    return worker.Send(id, 1, [&](auto& e) {
      e.mutable_metrics()->set_step(step);
      e.mutable_metrics()->set_loss(1.0 / static_cast<double>(step));
      e.mutable_metrics()->set_total_steps(10);
    });
  }
  grpc::Status Resume(const std::string& request_id, const std::string& id,
                      v1::Job* job) {
    v1::ResumeJobRequest request;
    request.set_request_id(request_id);
    request.set_job(id);
    return jobs_->ResumeJob(Deadline().get(), request, job);
  }
  // Imports the files under the name "m".
  grpc::Status Import(const std::vector<v1::ArtifactFile>& files) {
    v1::ImportModelRequest request;
    static int count = 0;
    request.set_request_id("import-" + std::to_string(++count));
    request.set_name("m");
    request.mutable_files()->Assign(files.begin(), files.end());
    v1::Model model;
    return models_->ImportModel(Deadline().get(), request, &model);
  }
  void FinishJob(FakeWorker& worker, const std::string& id) {
    const v1::ArtifactFile file = Upload("model.safetensors", "weights");
    worker.Send(id, 1, [&](auto& e) {
      auto& staged = *e.mutable_staged();
      staged.set_step(10);
      staged.set_final(true);
      *staged.add_files() = file;
      *staged.add_output() = file;
    });
    worker.AwaitAck(worker.Send(
        id, 1, [](auto& e) { e.mutable_ended()->set_complete(true); }));
  }

  TempDir dir_;
  ServerOptions options_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<v1::ArtifactService::Stub> artifacts_;
  std::unique_ptr<v1::DatasetService::Stub> datasets_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::CheckpointService::Stub> checkpoints_;
};

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
                                " after making space where the reason says");
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

// A safetensors file with the tensors that kModelConfig asks for.
std::string Weights(int64_t vocab) {
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
  };
  std::vector<Tensor> tensors = {{"model.embed_tokens.weight", {vocab, 16}},
                                 {"lm_head.weight", {vocab, 16}},
                                 {"model.norm.weight", {16}}};
  const std::string block = "model.layers.0.";
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
    tensors.push_back({block + norm + ".weight", {16}});
  }
  for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
    tensors.push_back({block + "self_attn." + name + ".weight", {16, 16}});
  }
  tensors.push_back({block + "mlp.gate_proj.weight", {32, 16}});
  tensors.push_back({block + "mlp.up_proj.weight", {32, 16}});
  tensors.push_back({block + "mlp.down_proj.weight", {16, 32}});
  const std::vector<uint8_t> zeros(static_cast<size_t>(vocab) * 16 * 4 + 4096);
  std::vector<TensorToWrite> all;
  for (const Tensor& t : tensors) {
    int64_t elements = 1;
    for (const int64_t d : t.shape) elements *= d;
    all.push_back({t.name, TensorDtype::kF32, t.shape,
                   std::span(zeros).first(static_cast<size_t>(elements) * 4)});
  }
  const TempDir dir;
  EXPECT_TRUE(WriteSafetensors(dir.path() + "/w", all, {}).ok());
  return ReadFile(dir.path() + "/w").value();
}

TEST_F(ServerTest, UploadedModel_IsCheckedBeforeAnyNodeSeesIt) {
  const v1::ArtifactFile config = Upload("config.json", kModelConfig);
  const v1::ArtifactFile weights = Upload("model.safetensors", Weights(64));
  const auto refused = [&](const std::vector<v1::ArtifactFile>& files,
                           const std::string& why) {
    const grpc::Status status = Import(files);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << why;
    EXPECT_THAT(status.error_message(), HasSubstr(why));
    EXPECT_THAT(status.error_message(), Not(HasSubstr(dir_.path())));
  };
  refused({weights}, "the model has no config.json");
  refused({config}, "the model has no model.safetensors");
  refused({Upload("config.json", R"({"architectures": ["GPT2LMHeadModel"]})"),
           weights},
          "supported are LlamaForCausalLM");
  refused({config, Upload("model.safetensors", "01234567garbage")},
          "model.safetensors: ");
  refused({config, Upload("model.safetensors", Weights(32))},
          "tensor model.embed_tokens.weight has shape [32, 16]; config.json "
          "asks for [64, 16]");
  refused({config, weights,
           Upload("model.safetensors.index.json",
                  R"({"weight_map": {"a": "model-1.safetensors"}})")},
          "the model has no model-1.safetensors, which its index names");
  refused({config, weights,
           Upload("tokenizer.json", R"({"model": {"vocab": {"<a>": 64}}})")},
          "tokenizer.json: its vocabulary goes up to id 64 (\"<a>\"), but "
          "vocab_size in config.json is 64");
  EXPECT_TRUE(Import({config, weights}).ok());

  v1::CreateJobRequest request = Request("r1");
  request.set_job_file(
      "apiVersion: qlora/v1\nname: test\nmethod: lora\nmodel: m\n"
      "data: {train: [{path: rows.jsonl, format: text}]}\n");
  v1::Job job;
  EXPECT_THAT(Create(request, &job).error_message(),
              HasSubstr("model.base: m has no tokenizer.json"));
  request.set_job_file(
      "apiVersion: qlora/v1\nname: test\nmethod: lora\nmodel: m\n"
      "data: {train: [{path: rows.jsonl, format: tokens}]}\n");
  EXPECT_TRUE(Create(request, &job).ok());
}

TEST_F(ServerTest, BadJobFile_NamesEachPlaceInTheDetails) {
  v1::Job job;
  const grpc::Status status = Create(Request("r1", "lerning_rate: 1\n"), &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("lerning_rate"));
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  google::rpc::BadRequest bad;
  ASSERT_TRUE(bad.ParseFromString(details.details(0).value()));
  EXPECT_EQ(bad.field_violations(0).field(), "lerning_rate");
}

TEST_F(ServerTest, WhatTheJobNames_MustBeThere) {
  v1::Job job;
  v1::CreateJobRequest request = Request("r1");
  request.clear_inputs();
  EXPECT_THAT(Create(request, &job).error_message(),
              HasSubstr("data.train[0].path: rows.jsonl was not uploaded"));
  request = Request("r2");
  request.mutable_inputs(0)->mutable_files(0)->set_sha256(Sha256Hex("?"));
  EXPECT_EQ(Create(request, &job).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  ASSERT_TRUE(RemoveRecursively(ModelDir()).ok());
  request = Request("r3");
  EXPECT_THAT(Create(request, &job).error_message(),
              HasSubstr("no such directory"));
  request.set_job_file(
      "apiVersion: qlora/v1\nname: x\nmethod: lora\n"
      "model: {base: nobody}\n"
      "data: {train: [{path: rows.jsonl, format: text}]}\n");
  EXPECT_THAT(Create(request, &job).error_message(),
              HasSubstr("no model \"nobody\""));
}

TEST_F(ServerTest, DirectoryOutsideTheRoots_IsRefused) {
  v1::ImportModelRequest request;
  request.set_request_id("r1");
  request.set_name("m");
  v1::Model model;
  for (const std::string& directory :
       {std::string("/etc"), ModelDir() + "/../../..", std::string("tiny")}) {
    request.set_directory(directory);
    EXPECT_EQ(
        models_->ImportModel(Deadline().get(), request, &model).error_code(),
        grpc::StatusCode::INVALID_ARGUMENT)
        << directory;
  }
  // Nor by a link inside.
  std::filesystem::create_directory_symlink("/etc",
                                            dir_.path() + "/models/link");
  request.set_directory(dir_.path() + "/models/link");
  EXPECT_THAT(
      models_->ImportModel(Deadline().get(), request, &model).error_message(),
      HasSubstr("model roots"));
  // Past a link ".." leads elsewhere: what the text says is read.
  const std::string outside = dir_.path() + "/outside";
  ASSERT_TRUE(CreateDirectories(outside + "/tiny").ok());
  ASSERT_TRUE(CreateDirectories(outside + "/deep").ok());
  ASSERT_TRUE(WriteFileAtomically(outside + "/tiny/config.json", "{}").ok());
  std::filesystem::create_directory_symlink(outside + "/deep",
                                            dir_.path() + "/models/away");
  request.set_directory(dir_.path() + "/models/away/../tiny");
  EXPECT_THAT(
      models_->ImportModel(Deadline().get(), request, &model).error_message(),
      HasSubstr("safetensors"));
}

TEST_F(ServerTest, Dataset_MeansItsFile) {
  v1::PutDatasetRequest put;
  put.set_request_id("r1");
  put.set_name("d");
  *put.mutable_file() = Upload("a.jsonl", "{\"input_ids\": [5]}\n");
  v1::Dataset dataset;
  ASSERT_TRUE(datasets_->PutDataset(Deadline().get(), put, &dataset).ok());
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  v1::CreateJobRequest request = Request("r2");
  std::string text = request.job_file();
  text.replace(text.find("rows.jsonl"), 10, "\"dataset:d\"");
  request.set_job_file(text);
  request.clear_inputs();
  v1::Job job;
  const grpc::Status status = Create(request, &job);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const auto prepare = worker.AwaitCommand().prepare();
  EXPECT_EQ(prepare.inputs(0).path(), "dataset:d");
  EXPECT_EQ(prepare.inputs(0).files(0).sha256(), put.file().sha256());
  put.set_name("Bad Name");
  put.set_request_id("r3");
  EXPECT_EQ(datasets_->PutDataset(Deadline().get(), put, &dataset).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServerTest, DatasetNameThatIsTaken_MeansOtherContentOnlyWhenAsked) {
  const auto put = [&](const std::string& id, const std::string& content,
                       bool replace, v1::Dataset* dataset) {
    v1::PutDatasetRequest request;
    request.set_request_id(id);
    request.set_name("d");
    request.set_replace(replace);
    *request.mutable_file() = Upload("a.jsonl", content);
    return datasets_->PutDataset(Deadline().get(), request, dataset);
  };
  v1::Dataset first, second;
  ASSERT_TRUE(put("r1", "one", false, &first).ok());
  ASSERT_TRUE(put("r2", "one", false, &second).ok());
  EXPECT_EQ(second.SerializeAsString(), first.SerializeAsString());
  const grpc::Status status = put("r3", "two", false, &second);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(status.error_message(),
              HasSubstr("\"d\" means other content (a.jsonl, 3 B)"));
  ASSERT_TRUE(put("r4", "two", true, &second).ok());
  EXPECT_EQ(second.file().sha256(), Sha256Hex("two"));
}

TEST_F(ServerTest, UploadedModelThatIsBroken_IsNamedAsItsOwnerNamedIt) {
  v1::ImportModelRequest request;
  request.set_request_id("r1");
  request.set_name("m");
  *request.add_files() = Upload("config.json", kModelConfig);
  *request.add_files() =
      Upload("model.safetensors", std::string(8, '\x7f') + "{}");
  v1::Model model;
  const grpc::Status status =
      models_->ImportModel(Deadline().get(), request, &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(),
              ::testing::StartsWith("model.safetensors: "));
  EXPECT_EQ(status.error_message().find(dir_.path()), std::string::npos);
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
  EXPECT_EQ(worker.welcome.term(), term + 1);
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
  stage(5, kept);
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
