#include "client/records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "common/base/files.h"

namespace qlora::client {
namespace {

using testing::HasSubstr;

class CheckRecordsTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/records-" + std::to_string(getpid());
    ASSERT_TRUE(CreateDirectories(directory_).ok());
  }
  void TearDown() override { ASSERT_TRUE(RemoveRecursively(directory_).ok()); }

  std::string Check(const std::string& content,
                    const std::string& name = "rows.jsonl") {
    const std::string path = directory_ + "/" + name;
    EXPECT_TRUE(WriteFileAtomically(path, content).ok());
    const absl::Status status = CheckRecords(path, name, &any_good_);
    EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  }

  std::string directory_;
  bool any_good_ = false;
};

TEST_F(CheckRecordsTest, EachLayout_IsFine) {
  EXPECT_EQ(Check("\xEF\xBB\xBF{\"text\": \"a\"}\n\n{\"input_ids\": [1]}"), "");
  EXPECT_EQ(Check(" [{\"text\":\n\"a\"}, {\"text\": \"a\"}]", "rows.json"), "");
  EXPECT_EQ(Check("[no JSON at all]\n", "rows.txt"), "");
}

TEST_F(CheckRecordsTest, BadLines_AreNamedOneALine) {
  EXPECT_EQ(Check("{\"text\": \"a\"}\n\n[1]\n{\"messages\": []}\n"),
            "rows.jsonl:3: is not a JSON object\n"
            "rows.jsonl:4: \"messages\" is not an array with messages in it\n");
  EXPECT_TRUE(any_good_);
  EXPECT_EQ(Check("{\"text\": \"a\"\n"),
            "rows.jsonl:1: not valid JSON at column 13 of the record: it ends "
            "without }\n");
  EXPECT_THAT(Check("{\"text\": \"\xff\"}\n"),
              HasSubstr("rows.jsonl:1: not valid JSON at column 11 of "));
  EXPECT_FALSE(any_good_);
}

TEST_F(CheckRecordsTest, ManyBadLines_AreCounted) {
  std::string content;
  for (int i = 0; i < 25; ++i) content += "x\n";
  EXPECT_THAT(Check(content),
              testing::StartsWith("rows.jsonl:1, 2, 3 and 22 more: not valid"));
  EXPECT_FALSE(any_good_);
  content.clear();
  for (int i = 0; i < 25; ++i) content += std::string(i, ' ') + "x\n";
  EXPECT_THAT(Check(content), testing::EndsWith("\nand 15 more\n"));
}

TEST_F(CheckRecordsTest, ArrayAndText_NameTheRecordOrLine) {
  EXPECT_EQ(Check("[{\"text\": \"a\"}, 3,\n{\"text\": [{\"a\": 1}]}]"),
            "rows.jsonl:1 (record 2): is not a JSON object\n"
            "rows.jsonl:2 (record 3): \"text\" is not a string\n");
  EXPECT_TRUE(any_good_);
  EXPECT_EQ(Check("good\nbad \xff\n", "rows.txt"),
            "rows.txt:2: is not UTF-8\n");
}

// No job reads on behind it.
TEST_F(CheckRecordsTest, BrokenArray_LeavesNothing) {
  EXPECT_EQ(Check("[{\"text\": \"a\"}, 2,\n 3"),
            "rows.jsonl:1 (record 2): is not a JSON object\n"
            "rows.jsonl:2 (record 3): the array ends without ]; a file that "
            "begins with [ has to be one array of records, other files hold "
            "one object a line\n");
  EXPECT_FALSE(any_good_);
}

}  // namespace
}  // namespace qlora::client
