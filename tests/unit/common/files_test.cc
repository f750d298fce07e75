#include "common/base/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace qlora {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

class FilesTest : public ::testing::Test {
 protected:
  FilesTest() {
    std::string pattern = fs::temp_directory_path() / "qlora-files-XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
  }
  ~FilesTest() override { fs::remove_all(dir_); }

  void Write(const std::string& name) {
    fs::create_directories(fs::path(dir_ + "/" + name).parent_path());
    std::ofstream(dir_ + "/" + name) << name;
  }

  std::string dir_;
};

TEST_F(FilesTest, ListFiles_WithLinks_NamesThemWhereTheyStand) {
  // As a Hugging Face cache lays a model out.
  Write("blobs/1234");
  Write("model/nested/plain");
  fs::create_symlink("../blobs/1234", dir_ + "/model/config.json");
  fs::create_symlink("nowhere", dir_ + "/model/broken");
  fs::create_directory_symlink("../blobs", dir_ + "/model/directory");
  for (const char* const end : {"/model", "/model/", "/blobs/../model"}) {
    EXPECT_THAT(*ListFilesRecursively(dir_ + end),
                ElementsAre("config.json", "nested/plain"));
  }
  EXPECT_TRUE(absl::IsNotFound(ListFilesRecursively(dir_ + "/no").status()));
}

TEST_F(FilesTest, ReadFile_MoreThanTheBound_IsRefused) {
  std::ofstream(dir_ + "/a") << std::string(100'000, 'x');
  EXPECT_EQ(ReadFile(dir_ + "/a")->size(), 100'000u);
  EXPECT_EQ(ReadFile(dir_ + "/a", 100'000)->size(), 100'000u);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadFile(dir_ + "/a", 99'999).status()));
}

TEST_F(FilesTest, CopyAndHash_Cancelled_EndSoonAndLeaveNothing) {
  std::ofstream(dir_ + "/a") << std::string(3 << 20, 'x');
  int asked = 0;
  const auto cancelled = [&] { return ++asked == 2; };
  EXPECT_TRUE(absl::IsCancelled(
      CopyFileSynced(dir_ + "/a", dir_ + "/b", cancelled).status()));
  EXPECT_EQ(asked, 2);
  EXPECT_THAT(*ListFilesRecursively(dir_), ElementsAre("a"));
  asked = 0;
  EXPECT_TRUE(absl::IsCancelled(Sha256OfFile(dir_ + "/a", cancelled).status()));
  EXPECT_EQ(asked, 2);
}

TEST_F(FilesTest, DirectoryWriter_OverAnOlderOne_LeavesTheNewOneOnly) {
  Write("out/old/a");
  auto writer = DirectoryWriter::Create(dir_ + "/out");
  ASSERT_TRUE(writer.ok()) << writer.status();
  std::ofstream((*writer)->directory() + "/b") << "b";
  EXPECT_THAT(*ListFilesRecursively(dir_ + "/out"), ElementsAre("old/a"));
  ASSERT_TRUE((*writer)->Commit().ok());
  writer->reset();
  EXPECT_THAT(*ListFilesRecursively(dir_), ElementsAre("out/b"));
}

TEST_F(FilesTest, DirectoryWriter_NotCommitted_LeavesTheOldOneOnly) {
  Write("out/a");
  std::ofstream((*DirectoryWriter::Create(dir_ + "/out"))->directory() + "/b")
      << "b";
  EXPECT_THAT(*ListFilesRecursively(dir_), ElementsAre("out/a"));
}

}  // namespace
}  // namespace qlora
