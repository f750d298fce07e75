#include "client/data_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "common/base/files.h"

namespace qlora::client {
namespace {

using testing::HasSubstr;

class DataFileTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/data-file-" + std::to_string(getpid());
    ASSERT_TRUE(CreateDirectories(directory_).ok());
  }
  void TearDown() override { ASSERT_TRUE(RemoveRecursively(directory_).ok()); }

  absl::Status Check(const std::string& content) {
    const std::string path = directory_ + "/rows.jsonl";
    EXPECT_TRUE(WriteFileAtomically(path, content).ok());
    return CheckDataFile(path, "rows.jsonl");
  }

  std::string directory_;
};

TEST_F(DataFileTest, AnythingButBlankLines_IsFine) {
  EXPECT_TRUE(Check("{}").ok());
  EXPECT_TRUE(Check("\xEF\xBB\xBF\n\n x").ok());
  EXPECT_TRUE(Check(std::string(200'000, '\n') + "x").ok());
}

TEST_F(DataFileTest, NoRecord_SaysWhatToDo) {
  EXPECT_EQ(Check("").message(),
            "data file rows.jsonl is empty: add records to it");
  for (const std::string& blank :
       {std::string("\n \t\r\n"), std::string(200'000, '\n'),
        std::string("\xEF\xBB\xBF\n")}) {
    const absl::Status status = Check(blank);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("rows.jsonl has only blank lines: add records"));
  }
}

TEST_F(DataFileTest, BinaryFile_IsNoText) {
  EXPECT_EQ(Check(std::string("ELF\2\1\0\0x", 8)).message(),
            "data file rows.jsonl is not text (UTF-8)");
}

TEST_F(DataFileTest, NoFile_IsRefused) {
  EXPECT_EQ(CheckDataFile(directory_, "rows").message(),
            "rows is a directory; data is one file");
  EXPECT_EQ(CheckDataFile("/dev/null", "null").message(),
            "null is no regular file");
}

}  // namespace
}  // namespace qlora::client
