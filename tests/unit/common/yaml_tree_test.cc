#include "common/formats/yaml_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace qlora {
namespace {

using ::testing::HasSubstr;

std::string Error(const std::string& text) {
  const YamlDocument document = ParseYaml(text);
  return document.errors.empty() ? "" : document.errors[0].message;
}

TEST(YamlTreeTest, Parse_Map_RemembersPlaces) {
  const YamlDocument document =
      ParseYaml("a: 1\nb:\n  - 'x'\n  - {c: ~, d: ''}\n");
  ASSERT_TRUE(document.errors.empty());
  const YamlNode& root = document.root;
  ASSERT_EQ(root.entries.size(), 2u);
  EXPECT_EQ(root.entries[1].line, 2);
  EXPECT_EQ(root.entries[1].column, 1);
  EXPECT_EQ(root.Find("a")->text, "1");
  EXPECT_FALSE(root.Find("a")->quoted);
  const YamlNode& list = *root.Find("b");
  ASSERT_EQ(list.items.size(), 2u);
  EXPECT_TRUE(list.items[0].quoted);
  EXPECT_EQ(list.items[0].line, 3);
  EXPECT_EQ(list.items[0].column, 5);
  EXPECT_TRUE(list.items[1].Find("c")->is_null());
  EXPECT_TRUE(list.items[1].Find("d")->is_scalar());
  EXPECT_EQ(root.Find("z"), nullptr);
}

TEST(YamlTreeTest, Parse_Aliases_Expands) {
  const YamlDocument document = ParseYaml("a: &x {k: v}\nb: *x\n");
  ASSERT_TRUE(document.errors.empty());
  EXPECT_EQ(document.root.Find("b")->Find("k")->text, "v");
}

TEST(YamlTreeTest, Parse_Hostile_IsRefused) {
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    const std::string last = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int k = 0; k < 10; ++k) bomb += (k ? ", " : "") + last;
    bomb += "]\n";
  }
  EXPECT_THAT(Error(bomb), HasSubstr("aliases expand to too much"));
  std::string wide = "a: &a " + std::string(100'000, 'x') + "\nb: [*a";
  for (int i = 0; i < 10'000; ++i) wide += ",*a";
  EXPECT_THAT(Error(wide + "]\n"), HasSubstr("aliases expand to too much"));
  EXPECT_THAT(Error("a: &a [*a]"), HasSubstr("inside its own anchor"));
  EXPECT_THAT(Error("a: *nobody"), HasSubstr("no anchor"));
  EXPECT_NE(Error(std::string(200'000, '[')), "");
  EXPECT_NE(Error(std::string(200'000, '{')), "");
  EXPECT_THAT(Error(std::string(40, '[') + std::string(40, ']')),
              HasSubstr("nested deeper"));
  EXPECT_THAT(Error(std::string(300'000, ' ')), HasSubstr("at most 262144"));
  EXPECT_THAT(Error("a: \xff"), HasSubstr("UTF-8"));
  EXPECT_THAT(Error("a: \xc0\x80"), HasSubstr("UTF-8"));
  EXPECT_THAT(Error(std::string("a: \0", 4)), HasSubstr("UTF-8"));
  EXPECT_THAT(Error("a: 1\na: 2\n"), HasSubstr("'a' appears twice"));
  EXPECT_THAT(Error("[1]: 2\n"), HasSubstr("plain word"));
  EXPECT_THAT(Error("a: !!python/object x\n"), HasSubstr("tag"));
  EXPECT_THAT(Error("a: 1\n---\nb: 2\n"), HasSubstr("second document"));
  EXPECT_NE(Error("a: [1\nb: 2"), "");
  EXPECT_NE(Error("a: b: c"), "");
  EXPECT_EQ(Error(""), "");
}

TEST(YamlTreeTest, Parse_IndentedWithATab_SaysSoAndWhere) {
  for (const auto& [text, line, column] :
       {std::tuple("a:\n\tb: 1\n", 2, 1), {"a:\n  b: 1\n \tc: 2\n", 3, 2}}) {
    const YamlDocument document = ParseYaml(text);
    ASSERT_EQ(document.errors.size(), 1u) << text;
    EXPECT_THAT(document.errors[0].message, HasSubstr("with a tab"));
    EXPECT_EQ(document.errors[0].line, line);
    EXPECT_EQ(document.errors[0].column, column);
  }
  // Where a tab is allowed it is no error.
  EXPECT_EQ(Error("a: {b: 1,\n\tc: 2}\n"), "");
}

TEST(YamlTreeTest, Parse_Mistakes_AreToldInTheWordsOfOneWhoWritesYaml) {
  EXPECT_THAT(Error("a: [1\nb: 2"), HasSubstr("'[' has no ']'"));
  EXPECT_THAT(Error("a: {b: 1\nc: 2"), HasSubstr("'{' has no '}'"));
  EXPECT_THAT(Error("a: b: c"), HasSubstr("quote a text that has ': ' in it"));
  EXPECT_THAT(Error("a: 'x\n"), HasSubstr("the quote is not closed"));
  EXPECT_THAT(Error("a:\n  b: 1\n c: 2\n"), HasSubstr("indented"));
}

TEST(YamlTreeTest, Write_AnyTree_ParsesBackTheSame) {
  const std::string text =
      "plain: word\nnumber: 2e-4\nquoted: '12'\ntruth: 'true'\n"
      "long: \"a\\nb: # \\\" \\u00e9\"\nlist:\n- 1\n- [2, 3]\n- {k: v, l: "
      "[x]}\n"
      "empty: {}\nnone: []\nnull_value: ~\n'odd key: x': 1\nspaced: a b c\n"
      "dash: '- x'\nutf8: \xc3\xa9\n";
  const YamlDocument first = ParseYaml(text);
  ASSERT_TRUE(first.errors.empty()) << first.errors[0].message;
  const std::string written = WriteYaml(first.root);
  const YamlDocument second = ParseYaml(written);
  ASSERT_TRUE(second.errors.empty()) << second.errors[0].message << written;
  EXPECT_EQ(WriteYaml(second.root), written);
  EXPECT_EQ(second.root.Find("long")->text, "a\nb: # \" \xc3\xa9");
  EXPECT_TRUE(second.root.Find("quoted")->quoted);
  EXPECT_FALSE(second.root.Find("number")->quoted);
  EXPECT_EQ(second.root.Find("list")->items[1].items[1].text, "3");
  EXPECT_EQ(second.root.Find("list")->items[2].Find("l")->items[0].text, "x");
}

}  // namespace
}  // namespace qlora
