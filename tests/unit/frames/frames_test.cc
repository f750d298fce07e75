#include "worker/frames/frames.h"

#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "qlora/v1/trainer.pb.h"

namespace qlora {
namespace {

using ::testing::HasSubstr;

class FramesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds_), 0);
  }
  void TearDown() override {
    CloseWriter();
    if (fds_[1] >= 0) close(fds_[1]);
  }
  void CloseWriter() {
    if (fds_[0] >= 0) close(fds_[0]);
    fds_[0] = -1;
  }
  void Send(const std::string& bytes) {
    ASSERT_EQ(write(fds_[0], bytes.data(), bytes.size()),
              static_cast<ssize_t>(bytes.size()));
  }

  int fds_[2] = {-1, -1};
};

TEST_F(FramesTest, Message_RoundTrip_IsEqual) {
  v1::TrainerEvent sent;
  sent.mutable_log()->set_text("loaded");
  ASSERT_TRUE(WriteFrame(fds_[0], sent).ok());
  ASSERT_TRUE(WriteFrame(fds_[0], v1::TrainerEvent()).ok());
  v1::TrainerEvent received;
  ASSERT_TRUE(ReadFrame(fds_[1], &received).value());
  EXPECT_EQ(received.log().text(), "loaded");
  ASSERT_TRUE(ReadFrame(fds_[1], &received).value());
  EXPECT_FALSE(received.has_log());
}

TEST_F(FramesTest, LargestFrame_SmallSocketBuffer_Arrives) {
  v1::TrainerEvent sent;
  sent.mutable_log()->set_text(std::string(kMaxFrameBytes - 64, 'x'));
  std::thread writer([&] { EXPECT_TRUE(WriteFrame(fds_[0], sent).ok()); });
  v1::TrainerEvent received;
  EXPECT_TRUE(ReadFrame(fds_[1], &received).value());
  writer.join();
  EXPECT_EQ(received.log().text().size(), kMaxFrameBytes - 64);
}

TEST_F(FramesTest, TooLargeMessage_IsRefusedBeforeSending) {
  v1::TrainerEvent sent;
  sent.mutable_log()->set_text(std::string(kMaxFrameBytes, 'x'));
  EXPECT_EQ(WriteFrame(fds_[0], sent).code(),
            absl::StatusCode::kInvalidArgument);
  CloseWriter();
  v1::TrainerEvent received;
  EXPECT_FALSE(ReadFrame(fds_[1], &received).value());
}

TEST_F(FramesTest, HugeLength_IsDataLoss) {
  Send("\xff\xff\xff\xff");
  v1::TrainerEvent received;
  const absl::Status status = ReadFrame(fds_[1], &received).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("4294967295"));
}

TEST_F(FramesTest, NoMessage_IsDataLoss) {
  Send(std::string("\x03\x00\x00\x00\xff\xff\xff", 7));
  v1::TrainerEvent received;
  EXPECT_EQ(ReadFrame(fds_[1], &received).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(FramesTest, EndInsideHeaderOrBody_IsUnavailable) {
  for (const std::string& bytes :
       {std::string("\x05\x00", 2), std::string("\x05\x00\x00\x00", 4),
        std::string("\x05\x00\x00\x00zz", 6)}) {
    TearDown();
    SetUp();
    Send(bytes);
    CloseWriter();
    v1::TrainerEvent received;
    EXPECT_EQ(ReadFrame(fds_[1], &received).status().code(),
              absl::StatusCode::kUnavailable)
        << bytes.size();
  }
}

TEST_F(FramesTest, WriteToClosedPeer_IsUnavailableAndRaisesNoSignal) {
  close(fds_[1]);
  fds_[1] = -1;
  EXPECT_EQ(WriteFrame(fds_[0], v1::TrainerEvent()).code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace qlora
