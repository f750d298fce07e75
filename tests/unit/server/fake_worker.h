// The other end of WorkerService for tests: speaks the stream as an agent does,
// and does with its attempts what the test says.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "qlora/v1/worker.grpc.pb.h"

namespace qlora::server {

class FakeWorker {
 public:
  FakeWorker(const std::string& address, std::string node, int devices)
      : stub_(qlora::v1::WorkerService::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))),
        node_(std::move(node)),
        devices_(devices) {}
  ~FakeWorker() { Disconnect(); }

  // Opens the stream; the attempts are what it still has.
  void Connect(const std::vector<std::pair<std::string, int>>& attempts = {}) {
    context_ = std::make_unique<grpc::ClientContext>();
    context_->set_deadline(std::chrono::system_clock::now() +
                           std::chrono::seconds(30));
    context_->set_wait_for_ready(true);
    stream_ = stub_->Connect(context_.get());
    qlora::v1::ConnectRequest request;
    auto& hello = *request.mutable_hello();
    hello.set_node(node_);
    hello.set_boot_id(boot);
    hello.set_cluster_id(cluster_id);
    hello.set_last_command_seen(last_command_);
    for (int i = 0; i < devices_; ++i) {
      auto& device = *hello.add_devices();
      device.set_name("cpu:" + std::to_string(i));
      device.set_kind("cpu");
    }
    for (const auto& root : model_roots) hello.add_model_roots(root);
    for (const auto& [job, attempt] : attempts) {
      auto& item = *hello.add_inventory();
      item.set_job_id(job);
      item.set_attempt(attempt);
      item.set_term(terms_[{job, attempt}]);
    }
    stream_->Write(request);
    qlora::v1::ConnectResponse response;
    if (!stream_->Read(&response)) return;
    welcome = response.welcome();
    cluster_id = welcome.cluster_id();
  }
  // The status with which the server ends the stream.
  grpc::Status Finish() {
    qlora::v1::ConnectResponse response;
    while (stream_->Read(&response)) {
    }
    return std::exchange(stream_, nullptr)->Finish();
  }
  void Disconnect() {
    if (stream_ == nullptr) return;
    context_->TryCancel();
    (void)Finish();
  }

  // The next message that is of that kind; acknowledges commands on the way.
  qlora::v1::ConnectResponse Await(
      qlora::v1::ConnectResponse::MessageCase kind) {
    qlora::v1::ConnectResponse response;
    while (stream_->Read(&response)) {
      if (response.has_command()) {
        last_command_ = response.command().number();
        if (response.command().has_prepare()) {
          const auto& prepare = response.command().prepare();
          terms_[{prepare.job_id(), prepare.attempt()}] = prepare.term();
        }
        qlora::v1::ConnectRequest ack;
        ack.set_command_ack(last_command_);
        stream_->Write(ack);
      }
      if (response.message_case() == kind) return response;
    }
    ADD_FAILURE() << "the stream ended";
    return response;
  }
  qlora::v1::WorkerCommand AwaitCommand() {
    return Await(qlora::v1::ConnectResponse::kCommand).command();
  }
  // Reads until the event is acknowledged.
  void AwaitAck(uint64_t number) {
    while (Await(qlora::v1::ConnectResponse::kEventAck).event_ack() < number) {
      if (::testing::Test::HasFailure()) return;
    }
  }

  // Sends an event and returns its number.
  uint64_t Send(const std::string& job, int attempt,
                const std::function<void(qlora::v1::WorkerEvent&)>& fill) {
    qlora::v1::ConnectRequest request;
    auto& event = *request.mutable_event();
    event.set_number(++last_event);
    event.set_job_id(job);
    event.set_attempt(attempt);
    event.set_term(terms_[{job, attempt}]);
    fill(event);
    stream_->Write(request);
    return last_event;
  }
  void Heartbeat() {
    qlora::v1::ConnectRequest request;
    request.mutable_heartbeat();
    stream_->Write(request);
    Await(qlora::v1::ConnectResponse::kHeartbeatReply);
  }

  std::string boot = "boot-1";
  std::string cluster_id;
  std::vector<std::string> model_roots;
  qlora::v1::Welcome welcome;
  uint64_t last_event = 0;

 private:
  const std::unique_ptr<qlora::v1::WorkerService::Stub> stub_;
  const std::string node_;
  const int devices_;
  uint64_t last_command_ = 0;
  // Of the attempts that it was told to prepare.
  std::map<std::pair<std::string, int>, int64_t> terms_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<qlora::v1::ConnectRequest,
                                           qlora::v1::ConnectResponse>>
      stream_;
};

}  // namespace qlora::server
