#include "server/core/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_harness.h"

namespace qlora::server {
namespace {

using ::testing::HasSubstr;

constexpr auto kQueued = qlora::v1::JOB_STATE_QUEUED;
constexpr auto kStarting = qlora::v1::JOB_STATE_STARTING;

TEST(Scheduler, NoNode_SaysSo) {
  CoreHarness core;
  const std::string id = core.Submit();
  EXPECT_EQ(core.job(id).state(), kQueued);
  EXPECT_THAT(core.job(id).reason(), HasSubstr("none is registered"));
}

TEST(Scheduler, Queue_IsOrderedByPriorityThenAge) {
  CoreHarness core;
  const std::string old_low = core.Submit("priority: 10\n");
  const std::string first = core.Submit("priority: 50\n");
  const std::string second = core.Submit("priority: 50\n");
  const std::string high = core.Submit("priority: 90\n");
  std::vector<std::string> order;
  ASSERT_TRUE(core.Join("n1").ok());
  for (int i = 0; i < 4; ++i) {
    for (const auto& [id, job] : core.state().jobs) {
      if (job.job().state() == kStarting) order.push_back(id);
    }
    core.Ended("n1", order.back(), qlora::v1::FAILURE_CLASS_USER);
  }
  EXPECT_EQ(order, (std::vector<std::string>{high, first, second, old_low}));
}

TEST(Scheduler, WaitingGang_KeepsLesserJobsOffItsNodes) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 2).ok());
  const std::string running = core.Submit();
  const std::string gang = core.Submit("resources: {devices_per_node: 2}\n");
  const std::string small = core.Submit();
  EXPECT_EQ(core.job(running).state(), kStarting);
  EXPECT_EQ(core.job(gang).state(), kQueued);
  EXPECT_THAT(core.job(gang).reason(), HasSubstr("1 of 2 cpu devices free"));
  EXPECT_EQ(core.job(small).state(), kQueued);
  core.Ended("n1", running, qlora::v1::FAILURE_CLASS_USER);
  EXPECT_EQ(core.job(gang).state(), kStarting);
}

TEST(Scheduler, JobThatWaitsForAnAbsentNode_DoesNotBlockOthers) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("big", 4).ok());
  core.Disconnect("big");
  ASSERT_TRUE(core.Join("n1", 1).ok());
  const std::string gang = core.Submit("resources: {devices_per_node: 4}\n");
  const std::string small = core.Submit();
  EXPECT_EQ(core.job(gang).state(), kQueued);
  EXPECT_THAT(core.job(gang).reason(), HasSubstr("big is"));
  EXPECT_EQ(core.job(small).state(), kStarting);
}

TEST(Scheduler, Device_IsHeldByOneAttempt) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 3).ok());
  std::set<std::string> devices;
  for (int i = 0; i < 3; ++i) {
    devices.insert(core.job(core.Submit()).ranks(0).device());
  }
  EXPECT_EQ(devices.size(), 3u);
  EXPECT_EQ(core.job(core.Submit()).state(), kQueued);
}

TEST(Scheduler, NodeOfTheLastFailure_IsUsedLast) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string id = core.RunningJob("n1");
  ASSERT_TRUE(core.Join("n2").ok());
  core.Ended("n1", id, qlora::v1::FAILURE_CLASS_INFRA);
  core.Advance(absl::Seconds(5));
  EXPECT_EQ(core.job(id).ranks(0).node(), "n2");
}

TEST(Scheduler, JobThatCanNeverFit_IsRefusedWithTheReason) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 2).ok());
  const std::string id = core.Submit("resources: {devices_per_node: 3}\n");
  const absl::Status status =
      CheckCanEverFit(core.state(), core.state().jobs.at(id));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("n1 has 2 of 2"));
  const std::string cuda = core.Submit("resources: {device: cuda}\n");
  EXPECT_FALSE(CheckCanEverFit(core.state(), core.state().jobs.at(cuda)).ok());
}

TEST(Scheduler, MinDeviceMemory_IsHeeded) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  core.state()
      .nodes.at("n1")
      .record.mutable_node()
      ->mutable_devices(0)
      ->set_memory_bytes(1 << 20);
  const std::string id =
      core.Submit("resources: {min_device_memory: 2097152}\n");
  EXPECT_THAT(core.job(id).reason(), HasSubstr("min_device_memory"));
}

TEST(Scheduler, Directory_IsSeenOnlyBelowARoot) {
  qlora::v1::Node node;
  node.add_model_roots("/models/");
  EXPECT_TRUE(NodeSeesDirectory(node, "/models/a"));
  EXPECT_TRUE(NodeSeesDirectory(node, "/models"));
  EXPECT_FALSE(NodeSeesDirectory(node, "/models2/a"));
  EXPECT_FALSE(NodeSeesDirectory(node, "/other"));
}

TEST(Scheduler, Task_GoesToTheLeastLoadedReadyNode) {
  CoreHarness core;
  EXPECT_EQ(NodeForTask(core.state(), {}).status().code(),
            absl::StatusCode::kUnavailable);
  ASSERT_TRUE(core.Join("n1", 2).ok());
  core.Submit();
  ASSERT_TRUE(core.Join("n2", 2).ok());
  EXPECT_EQ(NodeForTask(core.state(), {}).value(), "n2");
  qlora::v1::ModelSource model;
  model.set_directory("/nowhere");
  EXPECT_EQ(NodeForTask(core.state(), model).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace qlora::server
