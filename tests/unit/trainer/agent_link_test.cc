#include "worker/trainer/agent_link.h"

#include <sys/socket.h>
#include <unistd.h>

#include <future>

#include "common/base/utf8.h"
#include "gtest/gtest.h"
#include "worker/frames/frames.h"

namespace qlora::trainer {
namespace {

class AgentLinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds_), 0);
    link_ = std::make_unique<AgentLink>(fds_[0], [this] {
      if (!lost_told_.exchange(true)) lost_.set_value();
    });
  }
  void TearDown() override {
    link_.reset();
    close(fds_[0]);
    CloseAgent();
  }
  void CloseAgent() {
    if (fds_[1] >= 0) close(fds_[1]);
    fds_[1] = -1;
  }
  void Command(const v1::TrainerCommand& command) {
    ASSERT_TRUE(WriteFrame(fds_[1], command).ok());
  }
  void GiveTask() {
    v1::TrainerCommand command;
    command.mutable_task()->set_job_id("j-1");
    Command(command);
    ASSERT_EQ(link_->ReadTask().value().job_id(), "j-1");
  }

  int fds_[2] = {-1, -1};
  std::unique_ptr<AgentLink> link_;
  std::atomic<bool> lost_told_ = false;
  std::promise<void> lost_;
};

TEST_F(AgentLinkTest, FirstCommandIsNoTask_IsAnError) {
  v1::TrainerCommand command;
  command.mutable_stop();
  Command(command);
  EXPECT_EQ(link_->ReadTask().status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(AgentLinkTest, Commands_ArriveInOrder) {
  std::promise<int64_t> taken;
  link_->set_on_stage_taken([&](int64_t step) { taken.set_value(step); });
  GiveTask();
  v1::TrainerCommand command;
  command.mutable_start()->set_rendezvous_address("127.0.0.1:5");
  Command(command);
  EXPECT_EQ(link_->WaitForStart().value().rendezvous_address(), "127.0.0.1:5");
  EXPECT_FALSE(link_->TakeSaveRequest());
  command.mutable_save_now();
  Command(command);
  command.mutable_stage_taken()->set_step(7);
  Command(command);
  EXPECT_EQ(taken.get_future().get(), 7);
  EXPECT_TRUE(link_->TakeSaveRequest());
  EXPECT_FALSE(link_->TakeSaveRequest());
  EXPECT_FALSE(link_->stop_requested());
}

TEST_F(AgentLinkTest, StopBeforeStart_IsCancelled) {
  GiveTask();
  v1::TrainerCommand command;
  command.mutable_stop();
  Command(command);
  EXPECT_EQ(link_->WaitForStart().status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_TRUE(link_->stop_requested());
}

TEST_F(AgentLinkTest, AgentGone_IsToldAtOnce) {
  GiveTask();
  CloseAgent();
  lost_.get_future().get();
  EXPECT_EQ(link_->WaitForStart().status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(AgentLinkTest, AgentGoneAfterTheResult_IsNoLoss) {
  GiveTask();
  v1::TrainerEvent event;
  event.mutable_result()->set_step(3);
  link_->Send(event);
  v1::TrainerEvent received;
  ASSERT_TRUE(ReadFrame(fds_[1], &received).value());
  EXPECT_EQ(received.result().step(), 3);
  CloseAgent();
  link_.reset();
  EXPECT_FALSE(lost_told_.load());
}

TEST_F(AgentLinkTest, Log_CarriesRankAndTime) {
  GiveTask();
  link_->set_rank(2);
  link_->Log("warning", "careful");
  v1::TrainerEvent received;
  ASSERT_TRUE(ReadFrame(fds_[1], &received).value());
  EXPECT_EQ(received.log().rank(), 2);
  EXPECT_EQ(received.log().level(), "warning");
  EXPECT_EQ(received.log().text(), "careful");
  EXPECT_GT(received.log().time().seconds(), 1'600'000'000);
}

TEST_F(AgentLinkTest, TextsThatNoFrameHolds_ArriveWithBothEnds) {
  GiveTask();
  std::string huge = "begin";
  for (int i = 0; i < 3 << 20; ++i) huge += "\u00e9";
  huge += "end";
  v1::TrainerEvent event;
  event.mutable_failure()->set_message(huge);
  link_->Send(event);
  link_->Log("info", huge);
  for (const bool log : {false, true}) {
    v1::TrainerEvent received;
    ASSERT_TRUE(ReadFrame(fds_[1], &received).value());
    const std::string& text =
        log ? received.log().text() : received.failure().message();
    EXPECT_EQ(text.substr(0, 5), "begin");
    EXPECT_EQ(text.substr(text.size() - 3), "end");
    EXPECT_LE(text.size(), 16u << 10);
    EXPECT_EQ(ToValidUtf8(text), text);
  }
}

}  // namespace
}  // namespace qlora::trainer
