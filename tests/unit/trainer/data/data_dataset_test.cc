#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "common/base/files.h"
#include "common/base/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/shared_data.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/data/sampler.h"

namespace qlora::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using ::testing::UnorderedElementsAre;

constexpr int32_t kNo = kIgnoredLabel;

// Marks what the assistant says; "<" and ">" stand for the turns' ends.
constexpr char kTagged[] =
    "{% for m in messages %}{% if m.role == 'assistant' %}A:"
    "{% generation %}{{ m.content }}<{% endgeneration %}"
    "{% else %}U:{{ m.content }}>{% endif %}{% endfor %}";

class DatasetTest : public ::testing::Test {
 protected:
  DatasetTest() {
    std::string pattern = fs::temp_directory_path() / "qlora-data-XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
    // A tokenizer of characters: id 0 is <s>, 1 is </s>, 2 is unknown.
    nlohmann::json vocab = {{"<s>", 0}, {"</s>", 1}, {"?", 2}};
    const std::string letters =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
        " .,:;!#<>\n'\"-";
    for (const char c : letters) vocab[std::string(1, c)] = vocab.size();
    const nlohmann::json bos = {
        {"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
    const nlohmann::json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
    const auto added = [](int id, const char* content) {
      return nlohmann::json{
          {"id", id},        {"content", content}, {"single_word", false},
          {"lstrip", false}, {"rstrip", false},    {"normalized", false},
          {"special", true}};
    };
    const nlohmann::json tokenizer = {
        {"version", "1.0"},
        {"added_tokens", {added(0, "<s>"), added(1, "</s>")}},
        {"post_processor",
         {{"type", "TemplateProcessing"},
          {"single", {bos, text}},
          {"pair", {bos, text, bos, text}},
          {"special_tokens",
           {{"<s>", {{"id", "<s>"}, {"ids", {0}}, {"tokens", {"<s>"}}}}}}}},
        {"model",
         {{"type", "BPE"},
          {"unk_token", "?"},
          {"vocab", vocab},
          {"merges", nlohmann::json::array()}}}};
    Write("tokenizer.json", tokenizer.dump());
    Write("tokenizer_config.json",
          R"({"bos_token": "<s>", "eos_token": "</s>"})");
    vocab_size_ = static_cast<int64_t>(vocab.size());
    LoadText("");
  }
  ~DatasetTest() override { fs::remove_all(dir_); }

  void LoadText(std::string_view chat_template) {
    auto text = text::LoadModelText(dir_, chat_template);
    ASSERT_TRUE(text.ok()) << text.status().message();
    text_ = *std::move(text);
  }

  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream(dir_ + "/" + name, std::ios::binary) << content;
    return dir_ + "/" + name;
  }

  // A data file called `name` in messages.
  DataFile File(const std::string& name, DataFormat format,
                const std::string& content) const {
    return {.name = name, .path = Write(name, content), .format = format};
  }

  DataOptions Options(std::vector<DataFile> train) const {
    DataOptions options;
    options.train = std::move(train);
    options.packing = false;
    options.max_seq_len = 1000;
    options.vocab_size = vocab_size_;
    return options;
  }

  LoadedData Load(const DataOptions& options) const {
    auto data = LoadData(options, &text_);
    EXPECT_TRUE(data.ok()) << data.status().message();
    return data.ok() ? *std::move(data) : LoadedData{};
  }

  std::string Error(const DataOptions& options) const {
    const auto data = LoadData(options, &text_);
    EXPECT_FALSE(data.ok());
    return std::string(data.status().message());
  }

  // The row's text, and what of it is trained.
  std::string Tokens(const Row& row) const {
    return *text_.tokenizer->Decode(row.tokens, false);
  }
  std::string Trained(const Row& row) const {
    std::vector<int32_t> ids;
    for (const int32_t label : row.labels) {
      if (label != kNo) ids.push_back(label);
    }
    // Without a decoder the crate joins tokens with spaces.
    return *text_.tokenizer->Decode(ids, false);
  }

  std::string dir_;
  int64_t vocab_size_ = 0;
  text::ModelText text_;
};

std::string Spaced(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (!out.empty()) out += ' ';
    out += c;
  }
  return out;
}

int64_t LongestRow(const Dataset& data) {
  size_t longest = 0;
  for (int64_t i = 0; i < data.size(); ++i) {
    longest = std::max(longest, data.row(i).tokens.size());
  }
  return static_cast<int64_t>(longest);
}

TEST_F(DatasetTest, Chat_EachLossOn_TrainsItsPart) {
  LoadText(kTagged);
  DataOptions options = Options({File(
      "c.jsonl", DataFormat::kChat,
      R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"one"},{"role":"user","content":"r"},{"role":"assistant","content":"two"}]})")});
  const Row row = Load(options).train.row(0);
  EXPECT_EQ(Tokens(row), Spaced("U:q>A:one<U:r>A:two<"));
  EXPECT_EQ(Trained(row), Spaced("one<two<"));
  EXPECT_THAT(row.document_lengths, ElementsAre(row.tokens.size()));
  options.loss_on = LossOn::kLast;
  EXPECT_EQ(Trained(Load(options).train.row(0)), Spaced("two<"));
  options.loss_on = LossOn::kAll;
  EXPECT_EQ(Load(options).train.row(0).labels, row.tokens);
}

TEST_F(DatasetTest, PromptCompletion_TrainsCompletionAndEndOfSequence) {
  DataOptions options =
      Options({File("p.jsonl", DataFormat::kPromptCompletion,
                    R"({"prompt":"ab:","completion":"cd"})")});
  const Row row = Load(options).train.row(0);
  EXPECT_EQ(Tokens(row), "<s> " + Spaced("ab:cd") + " </s>");
  EXPECT_EQ(Trained(row), "c d </s>");
  EXPECT_EQ(row.labels[0], kNo);
  options.loss_on = LossOn::kAll;
  EXPECT_EQ(Load(options).train.row(0).labels, row.tokens);
}

TEST_F(DatasetTest, PromptCompletionThatEndsInEos_GetsNoSecond) {
  const DataOptions options =
      Options({File("p.jsonl", DataFormat::kPromptCompletion,
                    R"({"prompt":"a","completion":"b</s>"})")});
  EXPECT_EQ(Tokens(Load(options).train.row(0)), "<s> a b </s>");
}

TEST_F(DatasetTest, Alpaca_WithoutTemplate_UsesTheStanfordPrompt) {
  const DataOptions options =
      Options({File("a.json", DataFormat::kAlpaca,
                    R"([{"instruction":"add","input":"1 2","output":"3"},
                {"instruction":"hi","input":"","output":"yo"}])")});
  const LoadedData data = Load(options);
  ASSERT_EQ(data.train.size(), 2);
  EXPECT_THAT(Tokens(data.train.row(0)),
              HasSubstr(Spaced("### Input:\n1 2\n\n### Response:\n3")));
  EXPECT_EQ(Trained(data.train.row(0)), "3 </s>");
  EXPECT_THAT(Tokens(data.train.row(1)),
              HasSubstr(Spaced("### Instruction:\nhi\n\n### Response:\nyo")));
  EXPECT_EQ(Trained(data.train.row(1)), "y o </s>");
}

TEST_F(DatasetTest, Alpaca_WithTemplate_IsAChat) {
  LoadText(kTagged);
  const DataOptions options =
      Options({File("a.json", DataFormat::kAlpaca,
                    R"([{"instruction":"add","input":"1 2","output":"3"}])")});
  const Row row = Load(options).train.row(0);
  EXPECT_EQ(Tokens(row), Spaced("U:add\n\n1 2>A:3<"));
  EXPECT_EQ(Trained(row), Spaced("3<"));
}

TEST_F(DatasetTest, TextRecords_GetSpecialTokensAndAreTrainedWhole) {
  const DataOptions options =
      Options({File("t.jsonl", DataFormat::kText,
                    "\xef\xbb\xbf{\"text\":\"ab\"}\r\n\n{\"text\":\"c\"}")});
  const LoadedData data = Load(options);
  ASSERT_EQ(data.train.size(), 2);
  EXPECT_EQ(Tokens(data.train.row(0)), "<s> a b");
  EXPECT_EQ(data.train.row(1).labels, data.train.row(1).tokens);
  EXPECT_EQ(data.train.stats().total_tokens, 5);
  EXPECT_EQ(data.train.stats().trained_tokens, 3);
}

TEST_F(DatasetTest, PlainText_IsCutInWindowsOfMaxSeqLen) {
  DataOptions options =
      Options({File("t.txt", DataFormat::kText, "abcdefgh\n")});
  options.max_seq_len = 4;
  const LoadedData data = Load(options);
  ASSERT_EQ(data.train.size(), 3);
  EXPECT_EQ(Tokens(data.train.row(0)), "<s> a b c");
  EXPECT_EQ(Tokens(data.train.row(1)), "d e f g");
  EXPECT_EQ(Tokens(data.train.row(2)), "h \n");
  EXPECT_EQ(data.train.stats().records, 3);
}

TEST_F(DatasetTest, Tokens_NeedNoTokenizerAndMayHaveLabels) {
  const DataOptions options =
      Options({File("k.jsonl", DataFormat::kTokens,
                    "{\"input_ids\":[5,6,7]}\n"
                    "{\"input_ids\":[5,6,7],\"labels\":[-100,-100,9]}")});
  const auto data = LoadData(options, nullptr);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_THAT(data->train.row(0).labels, ElementsAre(5, 6, 7));
  EXPECT_THAT(data->train.row(1).tokens, ElementsAre(5, 6, 7));
  EXPECT_THAT(data->train.row(1).labels, ElementsAre(kNo, kNo, 9));
}

TEST_F(DatasetTest, TooLong_IsTruncatedSplitOrDropped) {
  DataOptions options = Options({File("k.jsonl", DataFormat::kTokens,
                                      "{\"input_ids\":[1,2,3,4,5,6,7,8,9]}\n"
                                      "{\"input_ids\":[1,2,3,4]}")});
  options.max_seq_len = 4;
  const LoadedData truncated = Load(options);
  ASSERT_EQ(truncated.train.size(), 2);
  EXPECT_THAT(truncated.train.row(0).tokens, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(truncated.train.stats().truncated, 1);

  options.on_too_long = OnTooLong::kSplit;
  const LoadedData split = Load(options);
  // The last piece has a single token, which nothing predicts.
  ASSERT_EQ(split.train.size(), 3);
  EXPECT_THAT(split.train.row(1).tokens, ElementsAre(5, 6, 7, 8));
  EXPECT_EQ(split.train.stats().split, 1);

  options.on_too_long = OnTooLong::kDrop;
  const LoadedData dropped = Load(options);
  EXPECT_EQ(dropped.train.size(), 1);
  EXPECT_EQ(dropped.train.stats().dropped, 1);
}

TEST_F(DatasetTest, Packing_FillsRowsAndKeepsDocumentsApart) {
  DataOptions options = Options({File("k.jsonl", DataFormat::kTokens,
                                      "{\"input_ids\":[1,2,3]}\n"
                                      "{\"input_ids\":[4,5,6,7]}\n"
                                      "{\"input_ids\":[8,9]}")});
  options.max_seq_len = 5;
  options.packing = true;
  const Dataset train = Load(options).train;
  ASSERT_EQ(train.size(), 2);
  EXPECT_THAT(train.row(0).tokens, ElementsAre(1, 2, 3, 8, 9));
  EXPECT_THAT(train.row(0).document_lengths, ElementsAre(3, 2));
  EXPECT_THAT(train.row(1).tokens, ElementsAre(4, 5, 6, 7));
  EXPECT_EQ(LongestRow(train), 5);
  EXPECT_EQ(train.stats().documents, 3);
  EXPECT_EQ(train.stats().trained_tokens, 6);
}

TEST_F(DatasetTest, EvalFraction_SetsTheSameRecordsAsideEachTime) {
  std::string lines;
  for (int i = 0; i < 40; ++i) {
    lines += "{\"input_ids\":[3," + std::to_string(i + 3) + "]}\n";
  }
  DataOptions options = Options({File("k.jsonl", DataFormat::kTokens, lines)});
  options.eval_fraction = 0.1;
  const LoadedData data = Load(options);
  EXPECT_EQ(data.train.size(), 36);
  EXPECT_EQ(data.eval.size(), 4);
  std::set<int32_t> seen;
  for (int64_t i = 0; i < 36; ++i) seen.insert(data.train.row(i).tokens[1]);
  for (int64_t i = 0; i < 4; ++i) seen.insert(data.eval.row(i).tokens[1]);
  EXPECT_EQ(seen.size(), 40);
  EXPECT_EQ(Load(options).eval.row(2).tokens, data.eval.row(2).tokens);
  options.seed = 43;
  std::set<int32_t> other;
  const LoadedData again = Load(options);
  std::set<int32_t> first;
  for (int64_t i = 0; i < 4; ++i) {
    first.insert(data.eval.row(i).tokens[1]);
    other.insert(again.eval.row(i).tokens[1]);
  }
  EXPECT_NE(first, other);
}

TEST_F(DatasetTest, EvalFiles_AreReadApart) {
  DataOptions options =
      Options({File("k.jsonl", DataFormat::kTokens, "{\"input_ids\":[1,2]}")});
  options.eval = {
      File("e.jsonl", DataFormat::kTokens, "{\"input_ids\":[3,4,5]}")};
  const LoadedData data = Load(options);
  EXPECT_EQ(data.train.size(), 1);
  ASSERT_EQ(data.eval.size(), 1);
  EXPECT_THAT(data.eval.row(0).tokens, ElementsAre(3, 4, 5));
}

TEST_F(DatasetTest, BadRecords_FailWithFileLineAndCount) {
  LoadText(kTagged);
  DataOptions options =
      Options({File("bad.jsonl", DataFormat::kChat,
                    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
                    "{\"role\":\"assistant\",\"content\":\"b\"}]}\n"
                    "{\"messages\": [}\n"
                    "\n"
                    "{\"text\":\"x\"}\n"
                    "[1]\n"
                    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n"
                    "{\"messages\":[{\"role\":\"user\"}]}\n"
                    "{\"messages\":[{\"content\":\"a\"}]}\n")});
  const std::string error = Error(options);
  EXPECT_THAT(error, StartsWith("6 bad records of 7 (correct the data, or set "
                                "data.on_bad_record: skip):\nbad.jsonl:2: "));
  EXPECT_THAT(error, EndsWith("\nand 1 more"));
  EXPECT_THAT(
      error,
      HasSubstr("bad.jsonl:2: not valid JSON at column 15 of the record: a "
                "value is missing before this"));
  EXPECT_THAT(error, HasSubstr("bad.jsonl:4: lacks \"messages\" (it has "
                               "\"text\")"));
  EXPECT_THAT(error, HasSubstr("\nbad.jsonl:5: is not a JSON object"));
  EXPECT_THAT(error, HasSubstr("bad.jsonl:6: no token of it is trained"));
  EXPECT_THAT(error, HasSubstr("messages[0] has no \"content\""));

  options.on_bad_record = OnBadRecord::kSkip;
  const LoadedData data = Load(options);
  EXPECT_EQ(data.train.size(), 1);
  EXPECT_EQ(data.train.stats().records, 7);
  EXPECT_EQ(data.train.stats().bad, 6);
  EXPECT_EQ(data.train.stats().bad_messages.size(), 5);
}

TEST_F(DatasetTest, TemplateThatIsStopped_FailsAndSkipsNothing) {
  LoadText(
      "{% for m in messages %}{% if m.content == 'grow' %}{% set ns = "
      "namespace(x='yy') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x "
      "%}{% endfor %}{% endif %}{% generation %}{{ m.content }}"
      "{% endgeneration %}{% endfor %}");
  std::string lines;
  for (const char* content : {"a", "grow", "b", "c"}) {
    lines += R"({"messages":[{"role":"assistant","content":")" +
             std::string(content) + "\"}]}\n";
  }
  DataOptions options = Options({File("c.jsonl", DataFormat::kChat, lines)});
  for (const auto on_bad : {OnBadRecord::kFail, OnBadRecord::kSkip}) {
    options.on_bad_record = on_bad;
    LoadText(text_.chat_template_source);
    const absl::Status status = LoadData(options, &text_).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("c.jsonl:2: the chat template was stopped: it needs "
                          "more than 256 MiB of memory"));
  }
}

TEST_F(DatasetTest, HugeRecordsAndTexts_GiveShortMessages) {
  LoadText("{{ raise_exception(messages[0].content) }}");
  std::string e;
  for (int i = 0; i < 100000; ++i) e += "\u00e9";
  const std::string chat = Error(Options(
      {File("c.jsonl", DataFormat::kChat,
            R"({"messages":[{"role":"user","content":")" + e + "\"}]}\n")}));
  EXPECT_THAT(chat, HasSubstr("c.jsonl:1: the chat template refuses"));
  EXPECT_LT(chat.size(), 1000);
  EXPECT_EQ(ToValidUtf8(chat), chat);
  const std::string tokens = Error(Options({File(
      "k.jsonl", DataFormat::kTokens, "{\"input_ids\":[1,\"" + e + "\"]}")}));
  EXPECT_THAT(tokens, HasSubstr("k.jsonl:1: input_ids[1] is "));
  EXPECT_THAT(tokens, HasSubstr("not a token id"));
  EXPECT_LT(tokens.size(), 1000);
  const std::string keys =
      Error(Options({File("x.jsonl", DataFormat::kText, "{\"" + e + "\":1}")}));
  EXPECT_THAT(keys, HasSubstr("correct the record or data.train[].format"));
  EXPECT_LT(keys.size(), 1000);
}

TEST_F(DatasetTest, BytesThatAreNoUtf8_NeverReachAMessage) {
  // The parser cites the first byte of a longer character, or any other byte.
  for (const char* line : {"\u043d\n", "\xff\n", "{\"text\":\"\xff\"}\n"}) {
    const std::string error =
        Error(Options({File("b.jsonl", DataFormat::kText, line)}));
    EXPECT_THAT(error, HasSubstr("b.jsonl:1: not valid JSON"));
    EXPECT_EQ(ToValidUtf8(error), error);
  }
}

TEST_F(DatasetTest, BadTokens_AreNamed) {
  const auto error = [&](const std::string& line) {
    return Error(Options({File("k.jsonl", DataFormat::kTokens, line)}));
  };
  EXPECT_THAT(error(R"({"input_ids":[1,99999]})"),
              HasSubstr("k.jsonl:1: input_ids[1] is 99999, not a token id"));
  EXPECT_THAT(error(R"({"input_ids":[1,-1]})"),
              HasSubstr("input_ids[1] is -1"));
  EXPECT_THAT(error(R"({"input_ids":[1,2.5]})"), HasSubstr("is 2.5"));
  EXPECT_THAT(error(R"({"input_ids":"x"})"), HasSubstr("not an array"));
  EXPECT_THAT(error(R"({"input_ids":[1,2],"labels":[1]})"),
              HasSubstr("2 tokens in input_ids but 1 label"));
  EXPECT_THAT(error(R"({"input_ids":[1,2],"labels":[-100,-100]})"),
              HasSubstr("no token of it is trained"));
  EXPECT_THAT(error(R"({"input_ids":[7]})"), HasSubstr("no token"));
  EXPECT_THAT(error(std::string(5000, '[')), HasSubstr("deeper than 100"));
  EXPECT_THAT(error("{\"input_ids\":" + std::string(5000, '[')),
              HasSubstr("deeper than 100"));
}

TEST_F(DatasetTest, AnswerBehindMaxSeqLen_IsABadRecord) {
  DataOptions options =
      Options({File("p.jsonl", DataFormat::kPromptCompletion,
                    R"({"prompt":"abcdefgh","completion":"x"})")});
  options.max_seq_len = 5;
  EXPECT_THAT(Error(options), HasSubstr("p.jsonl:1: has 11 tokens and none"));
  options.on_too_long = OnTooLong::kSplit;
  EXPECT_EQ(Load(options).train.size(), 1);
}

TEST_F(DatasetTest, EmptyMissingAndBrokenFiles_AreNamed) {
  EXPECT_EQ(Error(Options({File("e.jsonl", DataFormat::kTokens, "")})),
            "data file e.jsonl is empty: add records to it, or take it out of "
            "the job file");
  EXPECT_THAT(Error(Options({File("e.txt", DataFormat::kText, "")})),
              HasSubstr("data file e.txt is empty or has a single token: add"));
  EXPECT_THAT(Error(Options({File("e.json", DataFormat::kTokens, "[]")})),
              HasSubstr("data file e.json is empty"));
  EXPECT_THAT(Error(Options({File("k.jsonl", DataFormat::kTokens,
                                  "{\"input_ids\":[1,2]}"),
                             File("e.jsonl", DataFormat::kTokens, "\n \n")})),
              HasSubstr("data file e.jsonl is empty"));
  EXPECT_THAT(
      Error(Options({File("e.json", DataFormat::kAlpaca, "[{},\n")})),
      HasSubstr(
          "e.json:2 (record 2): not valid JSON at column 1 of the record: it "
          "ends where a value is expected; a file that begins "
          "with [ has to be one array"));
  const auto missing = LoadData(
      Options({{.name = "gone.jsonl", .path = dir_ + "/gone.jsonl"}}), nullptr);
  EXPECT_THAT(std::string(missing.status().message()),
              HasSubstr("needs a tokenizer"));
  const DataOptions gone = Options({{.name = "gone.jsonl",
                                     .path = dir_ + "/gone.jsonl",
                                     .format = DataFormat::kText}});
  EXPECT_TRUE(absl::IsNotFound(LoadData(gone, &text_).status()));
  EXPECT_THAT(Error(gone), HasSubstr("data file gone.jsonl"));
  EXPECT_THAT(Error(Options(
                  {{.name = "d", .path = dir_, .format = DataFormat::kText}})),
              HasSubstr("not a regular file"));
  EXPECT_THAT(Error(Options({File("u.txt", DataFormat::kText, "ab\xff")})),
              HasSubstr("u.txt:1: the text is not UTF-8 at byte 2"));
}

TEST_F(DatasetTest, FileWithoutARecordToUse_IsNamedWithTheRemedy) {
  DataOptions options =
      Options({File("k.jsonl", DataFormat::kTokens, "{\"input_ids\":[1,2]}"),
               File("f.jsonl", DataFormat::kTokens,
                    "{\"input_ids\":[1,2,3,4,5]}\n{}\n")});
  options.max_seq_len = 4;
  options.on_bad_record = OnBadRecord::kSkip;
  options.on_too_long = OnTooLong::kDrop;
  EXPECT_EQ(Error(options),
            "data file f.jsonl has no record to use: 2 read, 1 bad (skipped), "
            "1 longer than data.max_seq_len (dropped); raise data.max_seq_len "
            "(4), or set data.on_too_long to truncate or split; correct the "
            "bad ones:\nf.jsonl:2: lacks \"input_ids\" (it has no keys); "
            "correct the record or data.train[].format");
  options.on_bad_record = OnBadRecord::kFail;
  EXPECT_THAT(Error(options), HasSubstr("skip):\nf.jsonl:2: "));
}

TEST_F(DatasetTest, EvalFraction_NeverTakesEverythingAway) {
  DataOptions options =
      Options({File("k.jsonl", DataFormat::kTokens,
                    "{\"input_ids\":[1,2]}\n{\"input_ids\":[3,4]}")});
  options.eval_fraction = 0.99;
  EXPECT_EQ(Load(options).train.size(), 1);
  EXPECT_EQ(Load(options).eval.size(), 1);
  options.train = {
      File("one.jsonl", DataFormat::kTokens, "{\"input_ids\":[1,2]}")};
  EXPECT_EQ(Error(options),
            "data.eval_fraction needs at least 2 records to divide, and "
            "one.jsonl has 1 to use: add records, or take data.eval_fraction "
            "out");
}

TEST_F(DatasetTest, FilesThatWouldNotFitInMemory_AreRefusedWithTheRemedy) {
  const std::string line(65 << 20, 'x');
  EXPECT_THAT(
      Error(Options({File("l.jsonl", DataFormat::kTokens, "\n" + line)})),
      HasSubstr("l.jsonl:2: the line is longer than 64 MiB"));
  EXPECT_THAT(
      Error(Options({File("l.txt", DataFormat::kText,
                          "a\nb\n" + line + std::string(5 << 20, 'x'))})),
      HasSubstr("l.txt:3: the line is longer"));
  EXPECT_THAT(Error(Options({File("a.json", DataFormat::kTokens,
                                  "[{\"input_ids\":[1,2]},\n\"" + line)})),
              HasSubstr("a.json:2 (record 2): the record is longer than 64"));
}

TEST_F(DatasetTest, Arrays_AreReadRecordByRecordWithTheirLines) {
  // Brackets, commas and quotes inside strings, values over several lines.
  DataOptions options =
      Options({File("a.json", DataFormat::kTokens,
                    " [ {\"input_ids\": [1,2], \"x\": \"]},{[\\\"\\\\\"},\n"
                    "{\"input_ids\":\n[3,4]} , 7,\n {\"input_ids\": [5 6]},"
                    "{\"input_ids\":[8,9]}\n]\n ")});
  EXPECT_THAT(Error(options),
              EndsWith("\na.json:3 (record 3): is not a JSON object\na.json:4 "
                       "(record 4): not valid JSON at column 18 of the "
                       "record: a comma or ] is missing before this"));
  options.on_bad_record = OnBadRecord::kSkip;
  const LoadedData data = Load(options);
  EXPECT_EQ(data.train.stats().bad, 2);
  ASSERT_EQ(data.train.size(), 3);
  EXPECT_THAT(data.train.row(0).tokens, ElementsAre(1, 2));
  EXPECT_THAT(data.train.row(1).tokens, ElementsAre(3, 4));
  EXPECT_THAT(data.train.row(2).tokens, ElementsAre(8, 9));
}

TEST_F(DatasetTest, BrokenArrays_AreRefusedWhateverIsSkipped) {
  const auto error = [&](const std::string& array) {
    DataOptions options = Options({File("a.json", DataFormat::kTokens,
                                        "[{\"input_ids\":[1,2]}" + array)});
    options.on_bad_record = OnBadRecord::kSkip;
    return Error(options);
  };
  EXPECT_THAT(error(""), StartsWith("a.json:1 (record 1): the array ends "
                                    "without ]; a file that begins with [ "
                                    "has to be one array of records"));
  EXPECT_THAT(
      error(",\n{\"a\": \"b]"),
      StartsWith("a.json:2 (record 2): not valid JSON at column 7 of "
                 "the record: the text that begins here has no closing quote"));
  EXPECT_THAT(error("}"), HasSubstr("a comma or ] is missing behind the"));
  EXPECT_THAT(error(",{\"a\":]}]"), HasSubstr("a value is missing"));
  EXPECT_THAT(error("]\n{\"input_ids\":[1,2]}\n"),
              HasSubstr("a.json:2 (record 1): something follows the end"));
}

TEST_F(DatasetTest, RoleThatNobodyKnows_IsABadRecord) {
  const auto chat = [&](const char* role) {
    return Options({File("c.jsonl", DataFormat::kChat,
                         std::string(R"({"messages":[{"role":")") + role +
                             R"(","content":"a"},{"role":"assistant",)"
                             R"("content":"b"}]})")});
  };
  LoadText(kTagged);
  for (const char* role : {"system", "developer", "user", "tool"}) {
    EXPECT_EQ(Load(chat(role)).train.size(), 1) << role;
  }
  EXPECT_THAT(Error(chat("robot")),
              EndsWith("\nc.jsonl:1: messages[0].role is \"robot\"; roles are "
                       "system, developer, user, assistant, tool and what the "
                       "chat template names"));
  // Of this template it is one.
  LoadText(std::string("{% if messages[0].role == 'robot' %}{% endif %}") +
           kTagged);
  EXPECT_EQ(Load(chat("robot")).train.size(), 1);
  EXPECT_THAT(Error(chat("robo")), HasSubstr("messages[0].role is \"robo\""));
  // Every template quotes these.
  LoadText(std::string("{% if messages[0]['role'] == '' %}{% endif %}") +
           kTagged);
  for (const char* role : {"", "role"}) {
    EXPECT_THAT(Error(chat(role)), HasSubstr("messages[0].role is \""));
  }
}

TEST_F(DatasetTest, LinesOfAnyLength_AreReadWhole) {
  std::string content;
  std::vector<size_t> tokens;
  for (const size_t size : {32758, 32759, 32760, 32761, 32762, 1, 70000}) {
    content += R"({"input_ids":[1)";
    for (size_t i = 0; i < size; ++i) content += ",2";
    content += "]}\n";
    tokens.push_back(size + 1);
  }
  content.pop_back();
  DataOptions options =
      Options({File("n.jsonl", DataFormat::kTokens, content)});
  options.max_seq_len = 100000;
  options.packing = false;
  const auto data = LoadData(options, nullptr);
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->train.size(), tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(data->train.row(i).tokens.size(), tokens[i]);
  }
}

TEST_F(DatasetTest, ChatWithoutTemplate_SaysWhatToSet) {
  EXPECT_THAT(Error(Options({File("c.jsonl", DataFormat::kChat, "{}")})),
              HasSubstr("set data.chat_template"));
}

TEST_F(DatasetTest, TokenizerLargerThanVocabulary_FailsEvenWhenSkipping) {
  DataOptions options =
      Options({File("t.jsonl", DataFormat::kText, R"({"text":"ab-"})")});
  options.vocab_size = vocab_size_ - 1;
  options.on_bad_record = OnBadRecord::kSkip;
  const std::string error = Error(options);
  EXPECT_THAT(error, HasSubstr("the tokenizer in " + dir_));
  EXPECT_THAT(error,
              HasSubstr("vocabulary has " + std::to_string(vocab_size_ - 1)));
  EXPECT_THAT(error, HasSubstr("t.jsonl:1"));
}

TEST_F(DatasetTest, TokenIdAboveTwoBillion_IsOutsideTheVocabulary) {
  auto tokenizer = nlohmann::json::parse(*ReadFile(dir_ + "/tokenizer.json"));
  tokenizer["model"]["vocab"]["b"] = 3'000'000'000;
  Write("tokenizer.json", tokenizer.dump());
  LoadText("");
  EXPECT_THAT(
      Error(Options({File("t.jsonl", DataFormat::kText, R"({"text":"aba"})")})),
      HasSubstr("the tokenizer in " + dir_));
}

TEST_F(DatasetTest, ChatTemplates_TheNearestWins) {
  Write("tokenizer_config.json", R"({"chat_template": "config"})");
  LoadText("");
  EXPECT_EQ(text_.chat_template_source, "config");
  Write("chat_template.jinja", "file");
  LoadText("");
  EXPECT_EQ(text_.chat_template_source, "file");
  LoadText("job");
  EXPECT_EQ(text_.chat_template_source, "job");
}

TEST_F(DatasetTest, Cache_GivesTheSameRowsAndSurvivesDamage) {
  LoadText(kTagged);
  DataOptions options =
      Options({File("c.jsonl", DataFormat::kChat,
                    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
                    "{\"role\":\"assistant\",\"content\":\"b\"}]}\n{\n")});
  options.on_bad_record = OnBadRecord::kSkip;
  const LoadedData plain = Load(options);
  options.cache_directory = dir_ + "/work/cache";
  const auto check = [&](const LoadedData& data) {
    ASSERT_EQ(data.train.size(), plain.train.size());
    EXPECT_EQ(data.train.row(0).tokens, plain.train.row(0).tokens);
    EXPECT_EQ(data.train.row(0).labels, plain.train.row(0).labels);
    EXPECT_EQ(data.train.stats().bad, 1);
    EXPECT_EQ(data.train.stats().bad_messages,
              plain.train.stats().bad_messages);
  };
  check(Load(options));
  const auto caches = [&] {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(options.cache_directory)) {
      if (entry.path().extension() == ".tokens") out.push_back(entry.path());
    }
    return out;
  };
  ASSERT_EQ(caches().size(), 1);
  const std::string path = caches()[0];
  // What is used lately is kept longest.
  const auto old = fs::last_write_time(path) - std::chrono::hours(1);
  fs::last_write_time(path, old);
  check(Load(options));
  EXPECT_GT(fs::last_write_time(path), old + std::chrono::minutes(59));
  // Damage: a flipped byte, then a cut.
  std::string content = *ReadFile(path);
  content[content.size() / 2] ^= 1;
  std::ofstream(path, std::ios::binary) << content;
  check(Load(options));
  fs::resize_file(path, 20);
  check(Load(options));
  // A rank was killed while it wrote.
  fs::remove(path);
  std::ofstream(path + ".lock");
  std::ofstream(path + ".tmp-0a1b") << "part";
  const std::string other = options.cache_directory + "/k.tokens.tmp-0a1b";
  std::ofstream(other) << "another's part";
  check(Load(options));
  EXPECT_THAT(
      *ListFilesRecursively(options.cache_directory),
      UnorderedElementsAre(EndsWith(".tokens"), EndsWith("k.tokens.tmp-0a1b")));
  // Another option is another cache.
  options.loss_on = LossOn::kAll;
  EXPECT_NE(Load(options).train.row(0).labels, plain.train.row(0).labels);
  EXPECT_EQ(caches().size(), 2);
}

TEST_F(DatasetTest, TemplateThatAsksForTheDate_GetsTheOneOfTheOptions) {
  LoadText(
      "{{ strftime_now('%d %b %Y') }}:{% for m in messages %}{% generation %}"
      "{{ m.content }}{% endgeneration %}{% endfor %}");
  DataOptions options =
      Options({File("c.jsonl", DataFormat::kChat,
                    R"({"messages":[{"role":"assistant","content":"a"}]})")});
  options.cache_directory = dir_ + "/cache";
  const auto text = [&](int64_t now) {
    options.now = absl::FromUnixSeconds(now);
    return Tokens(Load(options).train.row(0));
  };
  EXPECT_EQ(text(1721952000), Spaced("26 Jul 2024:a"));
  EXPECT_EQ(text(1721952000 + 86400), Spaced("27 Jul 2024:a"));
  EXPECT_EQ(text(1721952000), Spaced("26 Jul 2024:a"));
}

TEST_F(DatasetTest, RanksAndThreadsAtOnce_GetTheSameRows) {
  std::string lines;
  for (int i = 0; i < 10000; ++i) {
    lines += "{\"text\":\"line " + std::to_string(i) + "\"}\n";
  }
  DataOptions options = Options({File("t.jsonl", DataFormat::kText, lines)});
  const LoadedData plain = Load(options);
  options.cache_directory = dir_ + "/cache";
  options.threads = 3;
  std::vector<std::jthread> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.emplace_back([&] {
      const LoadedData data = Load(options);
      ASSERT_EQ(data.train.size(), plain.train.size());
      for (int64_t i = 0; i < data.train.size(); i += 97) {
        EXPECT_EQ(data.train.row(i).tokens, plain.train.row(i).tokens);
      }
    });
  }
  ranks.clear();
  // No lock stays behind.
  EXPECT_THAT(*ListFilesRecursively(options.cache_directory),
              ElementsAre(EndsWith(".tokens")));
}

TEST_F(DatasetTest, CacheThatCannotBeWritten_IsDoneWithout) {
  DataOptions options =
      Options({File("t.jsonl", DataFormat::kText, R"({"text":"ab"})")});
  options.cache_directory = Write("file", "") + "/cache";
  EXPECT_EQ(Load(options).train.size(), 1);
}

}  // namespace
}  // namespace qlora::trainer
