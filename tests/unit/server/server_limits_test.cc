// What clients and workers must not be able to do to the coordinator.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server_harness.h"

namespace qlora::server {
namespace {

using ::testing::HasSubstr;

absl::Duration TimeOf(const std::function<void()>& f) {
  const absl::Time start = absl::Now();
  f();
  return absl::Now() - start;
}

TEST_F(ServerTest, Shutdown_EndsStreamsAtOnce) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  v1::StreamEventsRequest request;
  request.set_job(RunJob(worker, "r1"));
  request.set_follow(true);
  const auto follow = Deadline();
  const auto events = jobs_->StreamEvents(follow.get(), request);
  v1::JobEvent event;
  ASSERT_TRUE(events->Read(&event));
  // One that never goes on.
  const auto upload = Deadline();
  v1::UploadArtifactResponse response;
  const auto writer = artifacts_->UploadArtifact(upload.get(), &response);
  v1::UploadArtifactRequest chunk;
  chunk.set_sha256(Sha256Hex("ab"));
  chunk.set_total_bytes(2);
  chunk.set_data("a");
  ASSERT_TRUE(writer->Write(chunk));
  EXPECT_LT(TimeOf([&] { server_.reset(); }), absl::Seconds(4));
  while (events->Read(&event)) {
  }
  EXPECT_EQ(events->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(writer->Finish().ok());
}

}  // namespace
}  // namespace qlora::server
