// The whole coordinator over loopback, for tests: real services, real store.
#pragma once

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
#include "qlora/v1/node.grpc.pb.h"
#include "qlora/v1/server.grpc.pb.h"
#include "server/server.h"

namespace qlora::server {

namespace v1 = qlora::v1;

inline constexpr char kModelConfig[] =
    R"({"architectures": ["LlamaForCausalLM"],
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
    nodes_ = v1::NodeService::NewStub(channel);
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
    return RunJob(worker, Request(request_id));
  }
  std::string RunJob(FakeWorker& worker, const v1::CreateJobRequest& request) {
    v1::Job job;
    const grpc::Status status = Create(request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    const std::string id = job.job_id();
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
  grpc::Status Import(const std::vector<v1::ArtifactFile>& files,
                      const std::string& name = "m") {
    v1::ImportModelRequest request;
    static int count = 0;
    request.set_request_id("import-" + std::to_string(++count));
    request.set_name(name);
    request.mutable_files()->Assign(files.begin(), files.end());
    v1::Model model;
    return models_->ImportModel(Deadline().get(), request, &model);
  }
  void FinishJob(FakeWorker& worker, const std::string& id) {
    FinishJob(worker, id, Upload("model.safetensors", "weights"));
  }
  void FinishJob(FakeWorker& worker, const std::string& id,
                 const v1::ArtifactFile& file) {
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
  std::unique_ptr<v1::NodeService::Stub> nodes_;
};

}  // namespace qlora::server
