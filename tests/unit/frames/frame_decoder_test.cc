#include "worker/frames/frame_decoder.h"

#include <string>

#include "gtest/gtest.h"
#include "qlora/v1/trainer.pb.h"
#include "worker/frames/frames.h"

namespace qlora {
namespace {

std::string Frame(const std::string& text) {
  v1::TrainerEvent event;
  event.mutable_log()->set_text(text);
  return *EncodeFrame(event);
}

TEST(FrameDecoder, ByteByByte_GivesEveryMessageOnce) {
  FrameDecoder decoder;
  int messages = 0;
  for (const char c : Frame("a") + Frame(std::string(70000, 'b')) + Frame("")) {
    decoder.Append({&c, 1});
    const auto next = decoder.Next();
    ASSERT_TRUE(next.ok());
    if (next->has_value()) ++messages;
  }
  EXPECT_EQ(messages, 3);
  EXPECT_TRUE(decoder.empty());
}

TEST(FrameDecoder, ManyAtOnce_ComeInOrder) {
  FrameDecoder decoder;
  std::string bytes;
  for (int i = 0; i < 1000; ++i) bytes += Frame(std::to_string(i));
  decoder.Append(bytes);
  for (int i = 0; i < 1000; ++i) {
    v1::TrainerEvent event;
    ASSERT_TRUE(event.ParseFromString(**decoder.Next()));
    EXPECT_EQ(event.log().text(), std::to_string(i));
  }
  EXPECT_FALSE(decoder.Next()->has_value());
}

TEST(FrameDecoder, LengthAboveTheLimit_IsDataLoss) {
  FrameDecoder decoder;
  decoder.Append(std::string_view("\x01\x00\x40\x00", 4));
  EXPECT_TRUE(absl::IsDataLoss(decoder.Next().status()));
}

}  // namespace
}  // namespace qlora
