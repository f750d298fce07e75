#include "client/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "common/base/files.h"
#include "common/base/sha256.h"
#include "tests/unit/client/fake_server.h"

namespace qlora::client {
namespace {

namespace fs = std::filesystem;

std::string Bytes(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<char>(i * 7 + i / 251);
  return bytes;
}

class Transfer : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/transfer-" + std::to_string(::getpid());
    ASSERT_TRUE(RemoveRecursively(directory_).ok());
    ASSERT_TRUE(CreateDirectories(directory_).ok());
  }
  void TearDown() override { ASSERT_TRUE(RemoveRecursively(directory_).ok()); }

  std::string Write(const std::string& name, const std::string& content) {
    const std::string path = directory_ + "/" + name;
    EXPECT_TRUE(CreateDirectories(fs::path(path).parent_path()).ok());
    EXPECT_TRUE(WriteFileAtomically(path, content).ok());
    return path;
  }
  absl::Status Pull(const std::vector<v1::ArtifactFile>& files, bool force) {
    return PullDirectory(connection_, files, directory_ + "/out", force,
                         progress_);
  }
  std::string Read(const std::string& name) {
    return ReadFile(directory_ + "/out/" + name).value_or("?");
  }
  // Nothing but these lies in the test's directory.
  std::vector<std::string> Entries() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory_)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

  FakeServer server_;
  Connection connection_{server_.endpoint};
  ProgressLine progress_{false};
  std::string directory_;
};

TEST(TransferText, ShowsSpeedAndWhatIsLeftOnceThereIsATimeToMeasure) {
  const int64_t mib = 1 << 20;
  EXPECT_EQ(TransferText("uploading a", mib, 4 * mib, mib,
                         absl::Milliseconds(200), false),
            "uploading a [#####...............] 1.0 MiB of 4.0 MiB");
  // A third of what is there was there before.
  EXPECT_EQ(TransferText("uploading a", 3 * mib, 4 * mib, 2 * mib,
                         absl::Seconds(4), false),
            "uploading a [###############.....] 3.0 MiB of 4.0 MiB  512.0 "
            "KiB/s  ETA 2s");
}

TEST_F(Transfer, Upload_ThreeMegabytes_InChunksOfOneAtMost) {
  const std::string content = Bytes(3 * (1 << 20) + 17);
  const auto file =
      UploadFile(connection_, Write("a", content), "a", progress_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->sha256(), Sha256Hex(content));
  EXPECT_EQ(file->size_bytes(), static_cast<int64_t>(content.size()));
  EXPECT_EQ(server_.artifacts.largest_chunk(), size_t{1} << 20);
  EXPECT_EQ(server_.artifacts.received(), content.size());
}

TEST_F(Transfer, Upload_BrokenOff_GoesOnWhereItStopped) {
  const std::string content = Bytes(3 * (1 << 20) + 17);
  server_.artifacts.breaks = 2;
  server_.artifacts.break_after = 1 << 20;
  const auto file =
      UploadFile(connection_, Write("a", content), "a", progress_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(server_.artifacts.received(), content.size());
}

TEST_F(Transfer, Upload_KnownContent_SendsNothing) {
  server_.artifacts.Put("x", "known");
  ASSERT_TRUE(
      UploadFile(connection_, Write("a", "known"), "a", progress_).ok());
  EXPECT_EQ(server_.artifacts.received(), 0u);
}

TEST_F(Transfer, Upload_EmptyFile_Works) {
  EXPECT_TRUE(UploadFile(connection_, Write("a", ""), "a", progress_).ok());
}

TEST_F(Transfer, Upload_NoFile_NotFound) {
  EXPECT_TRUE(absl::IsNotFound(
      UploadFile(connection_, directory_ + "/none", "a", progress_).status()));
}

TEST_F(Transfer, VisibleFiles_LeaveHiddenOnesOut) {
  Write("d/a", "1");
  Write("d/.git/config", "2");
  Write("d/sub/b", "3");
  EXPECT_THAT(*VisibleFiles(directory_ + "/d"),
              testing::ElementsAre("a", "sub/b"));
}

TEST_F(Transfer, Pull_BrokenOff_GoesOnAndIsWhole) {
  const std::string content = Bytes(10'000);
  server_.artifacts.breaks = 1;
  server_.artifacts.break_after = 4000;
  const absl::Status status =
      Pull({server_.artifacts.Put("sub/a.bin", content)}, false);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(Read("sub/a.bin"), content);
  EXPECT_THAT(Entries(), testing::ElementsAre("out"));
}

TEST_F(Transfer, Pull_OtherBytesThanAnnounced_LeavesNothing) {
  const v1::ArtifactFile file = server_.artifacts.Put("a", "abc");
  server_.artifacts.Damage(file, "abd");
  EXPECT_TRUE(absl::IsDataLoss(Pull({file}, false)));
  server_.artifacts.Damage(file, "abcd");
  EXPECT_TRUE(absl::IsDataLoss(Pull({file}, false)));
  EXPECT_THAT(Entries(), testing::IsEmpty());
}

TEST_F(Transfer, Pull_PathOutOfTheDirectory_IsRefused) {
  const v1::ArtifactFile file = server_.artifacts.Put("../evil", "x");
  EXPECT_TRUE(absl::IsDataLoss(Pull({file}, false)));
  EXPECT_THAT(Entries(), testing::IsEmpty());
}

TEST_F(Transfer, Pull_DirectoryExists_OnlyWithForce) {
  Write("out/mine", "precious");
  const v1::ArtifactFile file = server_.artifacts.Put("a", "abc");
  EXPECT_TRUE(absl::IsAlreadyExists(Pull({file}, false)));
  EXPECT_EQ(Read("mine"), "precious");
  ASSERT_TRUE(Pull({file}, true).ok());
  EXPECT_EQ(Read("a"), "abc");
  EXPECT_EQ(Read("mine"), "?");
  EXPECT_THAT(Entries(), testing::ElementsAre("out"));
}

TEST_F(Transfer, Pull_SumsThatDoNotFit_AreNamed) {
  const v1::ArtifactFile file = server_.artifacts.Put("a", "abc");
  const v1::ArtifactFile good =
      server_.artifacts.Put("SHA256SUMS", Sha256Hex("abc") + "  a\n");
  EXPECT_TRUE(Pull({file, good}, false).ok());
  const v1::ArtifactFile bad =
      server_.artifacts.Put("SHA256SUMS", Sha256Hex("other") + "  a\n");
  const absl::Status status = Pull({file, bad}, true);
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("/a: has"));
  EXPECT_EQ(Read("a"), "abc") << "the old directory stays";
}

}  // namespace
}  // namespace qlora::client
