#include "server/core/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/spec/memory_plan.h"
#include "core_harness.h"

namespace qlora::server {
namespace {

using ::testing::HasSubstr;

constexpr auto kQueued = qlora::v1::JOB_STATE_QUEUED;
constexpr auto kStarting = qlora::v1::JOB_STATE_STARTING;
constexpr auto kBackoff = qlora::v1::JOB_STATE_BACKOFF;

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

TEST(Scheduler, JobInBackoff_KeepsItsDevicesFromJobsBehindIt) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 2).ok());
  const std::string high =
      core.RunningJob("n1", "priority: 90\nresources: {devices_per_node: 2}\n");
  const std::string low = core.Submit("priority: 10\n");
  const std::string younger = core.Submit("priority: 90\n");
  core.Ended("n1", high, qlora::v1::FAILURE_CLASS_INFRA);
  core.Restart();
  ASSERT_TRUE(core.Join("n1", 2).ok());
  EXPECT_EQ(core.job(high).state(), kBackoff);
  EXPECT_EQ(core.job(low).state(), kQueued);
  EXPECT_EQ(core.job(younger).reason(),
            "waits for devices: needs 1 node with 1 free device of any kind: "
            "n1 has 0 of 2 cpu devices free (2 kept for " +
                high + ", which starts again at 22:13:21 UTC)");
  core.Advance(absl::Seconds(3));
  EXPECT_EQ(core.job(high).state(), kStarting);
  EXPECT_EQ(core.job(low).state(), kQueued);
  EXPECT_THAT(core.job(younger).reason(), HasSubstr("free (2 in use)"));
}

TEST(Scheduler, JobInBackoff_LetsThoseBesideAndBeforeItStart) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string failed = core.RunningJob("n1");
  ASSERT_TRUE(core.Join("n2").ok());
  core.Ended("n1", failed, qlora::v1::FAILURE_CLASS_INFRA);
  // It goes elsewhere, and keeps that.
  const std::string beside = core.Submit();
  ASSERT_EQ(core.job(beside).state(), kStarting);
  EXPECT_EQ(core.job(beside).ranks(0).node(), "n1");
  EXPECT_EQ(core.job(core.Submit()).state(), kQueued);
  const std::string before = core.Submit("priority: 90\n");
  ASSERT_EQ(core.job(before).state(), kStarting);
  EXPECT_EQ(core.job(before).ranks(0).node(), "n2");
  EXPECT_EQ(core.job(failed).state(), kBackoff);
}

TEST(Scheduler, JobInBackoffThatCannotBePlaced_KeepsNothing) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  ASSERT_TRUE(core.Join("n2").ok());
  const std::string gang = core.Submit(kTwoNodes);
  core.Ended("n1", gang, qlora::v1::FAILURE_CLASS_INFRA);
  core.Ended("n2", gang, qlora::v1::FAILURE_CLASS_INFRA);
  ASSERT_EQ(core.job(gang).state(), kBackoff);
  core.Disconnect("n2");
  EXPECT_EQ(core.job(core.Submit()).state(), kStarting);
}

TEST(Scheduler, HeldJob_KeepsNothing) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  const std::string held = core.RunningJob("n1", "priority: 90\n");
  const std::string low = core.Submit();
  core.Ended("n1", held, qlora::v1::FAILURE_CLASS_DISK);
  EXPECT_EQ(core.job(held).state(), qlora::v1::JOB_STATE_HELD);
  EXPECT_EQ(core.job(low).state(), kStarting);
}

// A worker that is stopped and started.
TEST(Scheduler, DrainedJob_IsPlacedBeforeYoungerOnes) {
  for (const auto why :
       {qlora::v1::FAILURE_CLASS_DRAINED, qlora::v1::FAILURE_CLASS_PREEMPTED}) {
    CoreHarness core;
    ASSERT_TRUE(core.Join("n1").ok());
    const std::string older = core.RunningJob("n1");
    const std::string younger = core.Submit();
    core.Heartbeat("n1", /*draining=*/true);
    core.Staged("n1", older, 0, 17);
    core.Ended("n1", older, why, /*stopped=*/true);
    EXPECT_EQ(core.job(older).state(), kQueued);
    core.Disconnect("n1");
    ASSERT_TRUE(core.Join("n1", 1, "boot-2").ok());
    EXPECT_EQ(core.job(older).state(), kStarting);
    EXPECT_EQ(core.attempt(older).resume_step(), 17);
    EXPECT_EQ(core.job(younger).state(), kQueued);
  }
}

// Took minutes when each waiting job looked at all attempts there ever were.
TEST(Scheduler, ManyJobsAndOldAttempts_TakeLittleTime) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  for (int i = 0; i < 10'000; ++i) {
    AttemptRecord& old = core.state().attempts[{"j-old", i}];
    old.set_job_id("j-old");
    old.set_attempt(i);
    old.set_state(ATTEMPT_STATE_SUCCEEDED);
    old.add_ranks()->set_node("n1");
  }
  const absl::Time start = absl::Now();
  std::string last;
  for (int i = 0; i < 500; ++i) last = core.Submit();
  EXPECT_THAT(core.job(last).reason(), HasSubstr("waits for devices"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
}

TEST(Scheduler, JobThatCanNeverFit_IsRefusedWithTheReason) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1", 2).ok());
  const std::string id = core.Submit("resources: {devices_per_node: 3}\n");
  const absl::Status status =
      CheckCanEverFit(core.state(), core.state().jobs.at(id));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("n1 has 2 of 2"));
  const std::string gang = core.Submit(kTwoNodes);
  EXPECT_EQ(CheckCanEverFit(core.state(), core.state().jobs.at(gang)).message(),
            "the registered nodes can never hold this job: it needs 2 nodes "
            "with 1 device of any kind: only n1 has that (n1 has 2 cpu "
            "devices); ask for less there, or start the workers that are "
            "missing (`qloractl node list`; on one machine `qloractl local "
            "start --cpu-ranks N`)");
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

// Every compute thread of a rank takes memory.
TEST(Scheduler, Cores_CountForTheMemory) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  Job job = core.state().jobs.at(core.Submit());
  job.record.set_model_config(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 100,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu"
  })");
  job.plan = MakePlan(job.record).value();
  JobSpec spec = job.plan->spec;
  spec.train.activation_memory = ActivationMemory::kRecompute;
  spec.train.micro_batch_size = 1;
  const int64_t for_four =
      PlanMemory({.model = &*job.plan->model, .spec = &spec, .threads = 4})
          .value()
          .total();
  auto& device =
      *core.state().nodes.at("n1").record.mutable_node()->mutable_devices(0);
  device.set_memory_bytes(for_four);
  for (int core_id = 0; core_id < 4; ++core_id) device.add_cores(core_id);
  EXPECT_TRUE(CheckCanEverFit(core.state(), job).ok());
  device.add_cores(4);
  EXPECT_THAT(std::string(CheckCanEverFit(core.state(), job).message()),
              HasSubstr("too small: a rank needs"));
}

TEST(Scheduler, RankThatIsTheAdapters_CountsForTheMemory) {
  CoreHarness core;
  ASSERT_TRUE(core.Join("n1").ok());
  Job job = core.state().jobs.at(
      core.Submit("lora: {init_adapter: \"adapter:a\"}\n"));
  job.record.set_adapter_config("{\"r\": 128}");
  EXPECT_EQ(MakePlan(job.record).value()->spec.lora.rank, 128);
  // A stated one is the job file's.
  job = core.state().jobs.at(
      core.Submit("lora: {init_adapter: \"adapter:a\", rank: 8}\n"));
  job.record.set_adapter_config("{\"r\": 128}");
  EXPECT_EQ(MakePlan(job.record).value()->spec.lora.rank, 8);
  JobSpec spec;
  EXPECT_EQ(TakeFromAdapter("{\"r\": 0}", spec).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(TakeFromAdapter("[]", spec).code(),
            absl::StatusCode::kInvalidArgument);
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
