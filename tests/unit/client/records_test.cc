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

TEST_F(CheckRecordsTest, EachFormat_IsFine) {
  const std::string lines =
      R"({"messages": [{"role": "user", "content": "a"},
{"role": "assistant", "content": null, "tool_calls": []}]})";
  std::string one_line = lines;
  one_line[one_line.find('\n')] = ' ';
  const std::string all =
      "\xEF\xBB\xBF" + one_line +
      "\n\n{\"prompt\": \"a\", \"completion\": \"b\"}\r\n"
      "{\"instruction\": \"a\", \"output\": \"b\", \"input\": null}\n"
      "{\"text\": \"a\"}\n{\"input_ids\": [1, 2]}";
  EXPECT_EQ(Check(all), "");
  EXPECT_EQ(Check(" [" + lines + ", {\"text\": \"a\"}]", "rows.json"), "");
  EXPECT_EQ(Check("[no JSON at all]\n", "rows.txt"), "");
}

TEST_F(CheckRecordsTest, BadLines_AreNamedOneALine) {
  EXPECT_EQ(Check("{\"text\": \"a\"}\n\n[1]\n{\"messages\": []}\n"
                  "{\"messages\": [{\"role\": 1}]}\n"
                  "{\"messages\": [{\"role\": \"user\"}]}\n"),
            "rows.jsonl:3: is not a JSON object\n"
            "rows.jsonl:4: \"messages\" is not an array with messages in it\n"
            "rows.jsonl:5: messages[0] has no string \"role\"\n"
            "rows.jsonl:6: messages[0] has no \"content\"\n");
  EXPECT_TRUE(any_good_);
  EXPECT_EQ(Check("{\"text\": \"a\"\n"),
            "rows.jsonl:1: not valid JSON at column 13: it ends without }\n");
  EXPECT_THAT(Check("{\"prompt\": \"a\", \"text\": 3}\n"),
              HasSubstr("rows.jsonl:1: has the keys of no format, only "
                        "\"prompt\", \"text\": it needs "));
  EXPECT_THAT(Check("{\"text\": \"\xff\"}\n"),
              HasSubstr("rows.jsonl:1: not valid JSON at column 11: "));
  EXPECT_EQ(Check(R"({"messages": [{"role": "user", "content": null}]})"),
            "rows.jsonl:1: messages[0] has a \"content\" that is not a "
            "string\n");
  EXPECT_FALSE(any_good_);
  EXPECT_THAT(Check(std::string(5000, '[')), HasSubstr("not valid JSON"));
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

TEST_F(CheckRecordsTest, KeysOfNoFormat_AreNamed) {
  EXPECT_THAT(Check(R"({"question": "a", "answer": "b"})"),
              HasSubstr("has the keys of no format, only \"answer\", "
                        "\"question\": it needs \"messages\", "));
  EXPECT_THAT(Check("{}"), HasSubstr("has the keys of no format: it needs"));
  EXPECT_THAT(Check(R"({"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1})"),
              HasSubstr("\"f\", ...: it needs"));
}

TEST_F(CheckRecordsTest, ArrayAndText_NameTheRecordOrLine) {
  EXPECT_EQ(
      Check("[{\"text\": \"a\"}, 3, {\"text\": [{\"a\": 1}]}]"),
      "rows.jsonl: record 2: is not a JSON object\n"
      "rows.jsonl: record 3: has the keys of no format, only \"text\": it "
      "needs \"messages\", \"prompt\" and \"completion\", \"instruction\" and "
      "\"output\", "
      "\"text\" (strings), or \"input_ids\"\n");
  EXPECT_EQ(Check("[{\"text\": \"a\"},\n 3"),
            "rows.jsonl: record 2: is not a JSON object\n"
            "rows.jsonl: not valid JSON at line 2, column 3: it ends without "
            "]\n");
  EXPECT_EQ(Check("good\nbad \xff\n", "rows.txt"),
            "rows.txt:2: is not UTF-8\n");
}

}  // namespace
}  // namespace qlora::client
