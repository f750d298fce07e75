#include "common/formats/json_error.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora {
namespace {

using ::testing::StartsWith;

TEST(JsonError, EachMistake_IsSaidWithItsColumn) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "at column 1: it ends where a value is expected"},
      {R"({"a": 1)", "at column 8: it ends without }"},
      {R"({"a":)", "at column 6: it ends where a value"},
      {R"({)", "at column 2: it ends without }"},
      {R"([1, 2)", "at column 6: it ends without ]"},
      {R"({"a": "b)", "at column 7: the text that begins here has no closing"},
      {R"({"a" "b"})", "at column 6: a colon is missing behind the key"},
      {R"({"a": 1 "b": 2})", "at column 9: a comma or } is missing before"},
      {R"([1 2])", "at column 4: a comma or ] is missing before this"},
      {R"({"a": 1,})", "at column 8: a comma stands behind the last item"},
      {R"([1,])", "at column 3: a comma stands behind the last item"},
      {R"({"a": })", "at column 7: a value is missing before this"},
      {R"({a: 1})", "at column 2: a key in double quotes is expected"},
      {R"({'a': 1})", "at column 2: a key in double quotes is expected"},
      {R"({"a": 'b'})", "at column 7: text stands in double quotes, not"},
      {R"({"a": None})", "at column 7: this word is no value; JSON has true"},
      {R"({"a": NaN})", "at column 7: this word is no value"},
      {R"({"a": 01})", "at column 7: this is no number as JSON writes it"},
      {R"({"a": -x})", "at column 7: this is no number"},
      {R"({"a": 1.})", "at column 7: this is no number"},
      {R"({"a": 1e999})", "at column 7: this number is too large"},
      {R"({"a": 1} {"a": 2})", "at column 10: something follows the end of"},
      {R"({"a": "C:\x"})", "at column 10: a backslash begins no escape"},
      {R"({"a": "\ud800"})", "at column 8: half of a surrogate pair"},
      {"{\"a\": \"x\ty\"}", "at column 9: a control character stands"},
      {"{\"a\": \"\u00e9\xff\"}", "at column 9: a byte is no UTF-8"},
      {"\xff", "at column 1: no value begins with this character"},
      {std::string(101, '['), "at column 101: it is nested deeper than 100"},
      // Several lines.
      {"{\n \"a\": 1,\n \"b\" 2}\n", "at line 3, column 6: a colon is missing"},
      {"{\"a\" 2}\n", "at column 6: a colon is missing"}};
  for (const auto& [text, error] : cases) {
    EXPECT_THAT(JsonError(text), StartsWith(error)) << text;
  }
}

// With every byte of a record replaced or cut, it finds an error where the
// parser does and nowhere else.
TEST(JsonError, ChangedTexts_AreJsonWhereTheParserSaysSo) {
  const std::string text =
      "{\"k\": [\"\\u00e9\\ud83d\\ude00\u00e9\u20ac\U0001F600\", -1.5e+3, true,"
      " null, {}], \"l\": \"\\\\\\n\"}\n";
  ASSERT_EQ(JsonError(text), "");
  const std::string bytes =
      "\t\n \"\\'{}[],:-+.019eEtunlax\x7f\x80\xa0\xbf\xc1\xc3\xe0\xed"
      "\xf0\xf4\xf5\xff";
  for (size_t at = 0; at < text.size(); ++at) {
    std::vector<std::string> changed = {
        text.substr(0, at), text.substr(0, at) + text.substr(at + 1)};
    for (const char b : bytes) {
      changed.push_back(text);
      changed.back()[at] = b;
    }
    for (const std::string& t : changed) {
      EXPECT_EQ(JsonError(t).empty(), nlohmann::json::accept(t)) << t;
    }
  }
}

}  // namespace
}  // namespace qlora
