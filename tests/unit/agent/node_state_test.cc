#include "worker/agent/node_state.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "gtest/gtest.h"

namespace qlora::agent {
namespace {

namespace fs = std::filesystem;

class NodeStateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/qlora-node-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    directory_ = path;
    path_ = directory_ + "/node.state";
  }
  void TearDown() override { fs::remove_all(directory_); }

  static std::unique_ptr<NodeState> Open(const std::string& path) {
    auto state = NodeState::Open(path);
    EXPECT_TRUE(state.ok()) << state.status();
    return state.ok() ? *std::move(state) : nullptr;
  }
  // One byte of the slot becomes another.
  void Damage(int slot) {
    const int fd = ::open(path_.c_str(), O_WRONLY);
    EXPECT_EQ(::pwrite(fd, "?", 1, 4096 * slot + 20), 1);
    ::close(fd);
  }

  std::string directory_;
  std::string path_;
};

TEST_F(NodeStateTest, Reopened_Remembers) {
  EXPECT_TRUE(Open(path_)->Get().cluster_id.empty());
  {
    const auto state = Open(path_);
    ASSERT_TRUE(state->Welcome("c-1", 3).ok());
    ASSERT_TRUE(state->CommandSeen(7).ok());
    ASSERT_TRUE(state->CommandSeen(8).ok());
  }
  const auto state = Open(path_);
  EXPECT_EQ(state->Get().cluster_id, "c-1");
  EXPECT_EQ(state->Get().term, 3);
  EXPECT_EQ(state->Get().last_command, 8u);
  EXPECT_TRUE(absl::IsFailedPrecondition(state->Welcome("c-2", 3)));
  EXPECT_TRUE(absl::IsFailedPrecondition(state->Welcome("c-1", 2)));
}

// A disk that is full has no room for another file, as a directory that is
// gone has none.
TEST_F(NodeStateTest, NoRoomForAnotherFile_StillRemembers) {
  const auto state = Open(path_);
  fs::rename(directory_, directory_ + "-moved");
  EXPECT_TRUE(state->Welcome("c-1", 3).ok());
  for (uint64_t number = 1; number <= 9; ++number) {
    EXPECT_TRUE(state->CommandSeen(number).ok());
  }
  fs::rename(directory_ + "-moved", directory_);
  EXPECT_EQ(Open(path_)->Get().cluster_id, "c-1");
  EXPECT_EQ(Open(path_)->Get().last_command, 9u);
}

TEST_F(NodeStateTest, TornWrite_LeavesWhatWasBefore) {
  {
    const auto state = Open(path_);
    ASSERT_TRUE(state->CommandSeen(1).ok());
    ASSERT_TRUE(state->CommandSeen(2).ok());
  }
  Damage(0);
  EXPECT_EQ(Open(path_)->Get().last_command, 1u);
  ASSERT_TRUE(Open(path_)->CommandSeen(3).ok());
  EXPECT_EQ(Open(path_)->Get().last_command, 3u);
  Damage(0);
  Damage(1);
  EXPECT_TRUE(absl::IsDataLoss(NodeState::Open(path_).status()));
}

}  // namespace
}  // namespace qlora::agent
