#include "common/formats/records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "common/formats/json_array.h"
#include "common/spec/record_shape.h"

namespace qlora {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// A file many times larger than what reading it may take.
TEST(JsonArrayReader, LargeArray_IsReadValueByValue) {
  const std::string value = "\"" + std::string(1 << 20, 'x') + "\"";
  std::string array = "[" + value;
  for (int i = 1; i < 20; ++i) array += "," + value;
  std::istringstream in(array + "]");
  JsonArrayReader reader(in, 2 << 20);
  std::string text;
  for (int64_t i = 1; i <= 20; ++i) {
    ASSERT_TRUE(reader.Next(&text).value());
    EXPECT_EQ(text, value);
    // The stream is not read far ahead.
    if (i < 19) {
      EXPECT_LT(in.tellg(), (i + 1) << 20);
    }
  }
  EXPECT_FALSE(reader.Next(&text).value());
}

TEST(JsonArrayReader, ValueOfEscapes_IsRefusedBeyondTheLimit) {
  for (const char* begin : {"[\"", "[\"a"}) {
    std::string array = begin;
    for (int i = 0; i < 4096; ++i) array += "\\n";
    std::istringstream in(array);
    std::string text;
    EXPECT_THAT(JsonArrayReader(in, 1024).Next(&text).status().message(),
                HasSubstr("the record is longer"));
    EXPECT_LE(text.size(), 1025u);
  }
}

std::string WhyBad(const char* record) {
  const RecordJson value = ParseRecord(record).value();
  return std::string(CheckRecordOfAnyFormat(value).message());
}

TEST(RecordShape, RecordOfAnyFormat_IsFine) {
  for (const char* record :
       {R"({"messages": [{"role": "a", "content": null, "tool_calls": []}]})",
        R"({"prompt": "a", "completion": "b"})",
        R"({"instruction": "a", "output": "b", "input": null})",
        R"({"messages": 3, "text": "a"})", R"({"input_ids": [1, 2]})"}) {
    EXPECT_EQ(WhyBad(record), "") << record;
  }
}

TEST(RecordShape, WhatIsWrong_IsNamed) {
  EXPECT_EQ(WhyBad("[1]"), "is not a JSON object");
  EXPECT_EQ(WhyBad(R"({"messages": [{"role": 1}]})"),
            "messages[0] has no string \"role\"");
  EXPECT_EQ(WhyBad(R"({"messages": [{"role": "user", "content": null}]})"),
            "messages[0] has no \"content\"");
  EXPECT_EQ(WhyBad(R"({"prompt": 3, "text": 3})"), "\"text\" is not a string");
  EXPECT_THAT(WhyBad(R"({"question": "a", "answer": "b"})"),
              StartsWith("has the keys of no format (it has \"question\", "
                         "\"answer\"): it needs \"messages\", "));
}

}  // namespace
}  // namespace qlora
