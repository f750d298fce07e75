// Real datasets with real tokenizers.
#include <algorithm>
#include <filesystem>
#include <fstream>

#include "common/base/files.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/shared_data.h"
#include "worker/trainer/data/dataset.h"

namespace qlora::trainer {
namespace {

using nlohmann::json;
using ::testing::EndsWith;
using ::testing::HasSubstr;

json ReadShared(const std::string& name) {
  return json::parse(*ReadFile(SharedData() + "/" + name));
}

text::ModelText LoadText(const std::string& name,
                         std::string_view chat_template = "") {
  auto text = text::LoadModelText(SharedData() + "/" + name, chat_template);
  EXPECT_TRUE(text.ok()) << text.status().message();
  return *std::move(text);
}

DataOptions Options(const std::string& dataset, DataFormat format,
                    const text::ModelText& text) {
  DataOptions options;
  options.train = {{.name = dataset,
                    .path = SharedData() + "/datasets/" + dataset,
                    .format = format}};
  options.packing = false;
  options.max_seq_len = 100000;
  options.vocab_size = text.tokenizer->id_bound();
  options.threads = 2;
  return options;
}

Dataset Load(const DataOptions& options, const text::ModelText& text) {
  auto data = LoadData(options, &text);
  EXPECT_TRUE(data.ok()) << data.status().message();
  return data.ok() ? std::move(data->train) : Dataset();
}

// Text of the trained runs of a row.
std::vector<std::string> TrainedRuns(const Row& row,
                                     const text::ModelText& text) {
  std::vector<std::string> runs;
  std::vector<int32_t> run;
  for (size_t i = 0; i <= row.tokens.size(); ++i) {
    if (i < row.tokens.size() && row.labels[i] != kIgnoredLabel) {
      run.push_back(row.labels[i]);
    } else if (!run.empty()) {
      runs.push_back(*text.tokenizer->Decode(run, false));
      run.clear();
    }
  }
  return runs;
}

std::vector<std::string> Answers(const json& messages) {
  std::vector<std::string> out;
  for (const json& m : messages) {
    if (m["role"] == "assistant") out.push_back(m["content"]);
  }
  return out;
}

std::vector<json> ChatRecords() {
  std::vector<json> out;
  std::ifstream in(SharedData() + "/datasets/chat_messages.jsonl");
  for (std::string line; std::getline(in, line);) {
    out.push_back(json::parse(line));
  }
  return out;
}

constexpr char kChatMlWithGeneration[] =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}";

void ExpectAnswersAreTrained(std::string_view chat_template,
                             const std::string& end_of_turn) {
  const text::ModelText text = LoadText("tokenizers/qwen2", chat_template);
  const Dataset data =
      Load(Options("chat_messages.jsonl", DataFormat::kChat, text), text);
  const std::vector<json> records = ChatRecords();
  ASSERT_EQ(data.size(), static_cast<int64_t>(records.size()));
  for (int64_t i = 0; i < data.size(); ++i) {
    const std::vector<std::string> runs = TrainedRuns(data.row(i), text);
    const std::vector<std::string> answers = Answers(records[i]["messages"]);
    ASSERT_EQ(runs.size(), answers.size()) << i;
    for (size_t a = 0; a < runs.size(); ++a) {
      ASSERT_EQ(runs[a], answers[a] + end_of_turn) << i;
    }
  }
}

int64_t LongestRow(const Dataset& data) {
  size_t longest = 0;
  for (int64_t i = 0; i < data.size(); ++i) {
    longest = std::max(longest, data.row(i).tokens.size());
  }
  return static_cast<int64_t>(longest);
}

TEST(RealData, ChatMessages_TrainedTokensAreTheAnswers) {
  SKIP_WITHOUT_SHARED_DATA();
  // Qwen's own template, which has no generation blocks.
  ExpectAnswersAreTrained("", "<|im_end|>\n");
  ExpectAnswersAreTrained(kChatMlWithGeneration, "<|im_end|>");
}

TEST(RealData, ChatMessages_PackedAndUnpacked_HoldTheSameDocuments) {
  SKIP_WITHOUT_SHARED_DATA();
  const text::ModelText text = LoadText("tokenizers/minimind");
  DataOptions options = Options("chat_messages.jsonl", DataFormat::kChat, text);
  options.max_seq_len = 1024;
  const Dataset plain = Load(options, text);
  options.packing = true;
  const Dataset packed = Load(options, text);
  EXPECT_EQ(plain.stats().trained_tokens, packed.stats().trained_tokens);
  EXPECT_EQ(plain.stats().total_tokens, packed.stats().total_tokens);
  EXPECT_EQ(plain.stats().documents, packed.stats().documents);
  EXPECT_LE(LongestRow(packed), 1024);
  const double used = static_cast<double>(packed.stats().total_tokens) /
                      (1024.0 * packed.size());
  EXPECT_GT(used, 0.97);
  RecordProperty("used", std::to_string(used));
}

TEST(RealData, Alpaca_ChatAndPlainPrompt) {
  SKIP_WITHOUT_SHARED_DATA();
  const json records = ReadShared("datasets/alpaca_en_demo.json");
  const text::ModelText qwen = LoadText("tokenizers/qwen2");
  const Dataset chat =
      Load(Options("alpaca_en_demo.json", DataFormat::kAlpaca, qwen), qwen);
  const text::ModelText llama = LoadText("tokenizers/llama2");
  const Dataset plain =
      Load(Options("alpaca_en_demo.json", DataFormat::kAlpaca, llama), llama);
  ASSERT_EQ(chat.size(), static_cast<int64_t>(records.size()));
  ASSERT_EQ(plain.size(), chat.size());
  for (int64_t i = 0; i < chat.size(); ++i) {
    const std::string output = records[i]["output"];
    ASSERT_THAT(TrainedRuns(chat.row(i), qwen),
                ::testing::ElementsAre(output + "<|im_end|>\n"));
    Row row = plain.row(i);
    EXPECT_EQ(row.tokens.front(), 1);
    EXPECT_EQ(row.tokens.back(), 2);
    EXPECT_EQ(row.labels.back(), 2);
    const std::string whole = *llama.tokenizer->Decode(row.tokens, false);
    ASSERT_THAT(whole, HasSubstr("### Response:\n" + output));
    row.labels.back() = kIgnoredLabel;
    ASSERT_THAT(TrainedRuns(row, llama),
                ::testing::ElementsAre(EndsWith(output)));
  }
}

TEST(RealData, Gsm8k_AsPromptAndCompletion_TrainsTheAnswer) {
  SKIP_WITHOUT_SHARED_DATA();
  std::ifstream in(SharedData() + "/datasets/gsm8k_test.jsonl");
  const std::string path = ::testing::TempDir() + "/qlora_gsm8k.jsonl";
  std::ofstream out(path);
  for (std::string line; std::getline(in, line);) {
    const json record = json::parse(line);
    const std::string question = record["question"];
    out << json({{"prompt", question + "\n"}, {"completion", record["answer"]}})
        << "\n";
  }
  out.close();
  const text::ModelText text = LoadText("models/stories260K");
  DataOptions options = Options("", DataFormat::kPromptCompletion, text);
  options.train[0].name = "gsm8k.jsonl";
  options.train[0].path = path;
  const Dataset data = Load(options, text);
  EXPECT_EQ(data.size(), 1319);
  options.max_seq_len = 256;
  options.on_bad_record = OnBadRecord::kSkip;
  const Dataset cut = Load(options, text);
  EXPECT_EQ(cut.stats().records, 1319);
  EXPECT_EQ(cut.stats().bad + cut.size(), 1319);
  EXPECT_GT(cut.stats().truncated, 0);
  EXPECT_EQ(LongestRow(cut), 256);
  std::filesystem::remove(path);
}

TEST(RealData, TinyShakespeare_WindowsAreTheTextInOrder) {
  SKIP_WITHOUT_SHARED_DATA();
  const text::ModelText text = LoadText("models/stories260K");
  DataOptions options =
      Options("tiny_shakespeare.txt", DataFormat::kText, text);
  options.max_seq_len = 256;
  const Dataset data = Load(options, text);
  std::vector<int32_t> all;
  for (int64_t i = 0; i < data.size(); ++i) {
    const Row row = data.row(i);
    if (i + 1 < data.size()) {
      EXPECT_EQ(row.tokens.size(), 256);
    }
    all.insert(all.end(), row.tokens.begin(), row.tokens.end());
  }
  const json recorded =
      ReadShared("adapters/stories260K-shakespeare-lora/train_ids.json");
  const auto ids = (recorded.is_array() ? recorded : recorded["ids"])
                       .get<std::vector<int32_t>>();
  // The recorded text ends earlier, its last tokens may be cut otherwise.
  ASSERT_GT(all.size(), ids.size());
  EXPECT_TRUE(std::equal(ids.begin(), ids.end() - 8, all.begin()));
}

// It is read in several pieces.
TEST(RealData, PlainText_HasTheTokensOfTheWholeText) {
  SKIP_WITHOUT_SHARED_DATA();
  const std::string path = SharedData() + "/datasets/tiny_shakespeare.txt";
  for (const char* tokenizer :
       {"models/stories260K", "tokenizers/gpt2", "tokenizers/qwen2"}) {
    const text::ModelText text = LoadText(tokenizer);
    DataOptions options =
        Options("tiny_shakespeare.txt", DataFormat::kText, text);
    options.max_seq_len = 1024;
    options.packing = false;
    const Dataset data = Load(options, text);
    std::vector<int32_t> all;
    for (int64_t i = 0; i < data.size(); ++i) {
      const Row row = data.row(i);
      all.insert(all.end(), row.tokens.begin(), row.tokens.end());
    }
    const auto whole =
        text.tokenizer->Encode(*ReadFile(path), /*add_special_tokens=*/true);
    ASSERT_TRUE(whole.ok());
    EXPECT_EQ(all, whole->ids) << tokenizer;
  }
}

TEST(RealData, C4AndWiki_TextRecordsAndLongLines) {
  SKIP_WITHOUT_SHARED_DATA();
  const text::ModelText text = LoadText("tokenizers/gpt2");
  DataOptions options = Options("c4_demo.jsonl", DataFormat::kText, text);
  options.max_seq_len = 512;
  options.on_too_long = OnTooLong::kSplit;
  options.packing = true;
  const Dataset c4 = Load(options, text);
  EXPECT_EQ(c4.stats().records, 300);
  EXPECT_GT(c4.stats().documents, 300);
  EXPECT_GT(c4.stats().split, 0);
  options.train[0].name = "wiki_demo.txt";
  options.train[0].path = SharedData() + "/datasets/wiki_demo.txt";
  const Dataset wiki = Load(options, text);
  EXPECT_EQ(LongestRow(wiki), 512);
}

TEST(RealData, WrongFormat_SaysWhatTheRecordHas) {
  SKIP_WITHOUT_SHARED_DATA();
  const text::ModelText text = LoadText("tokenizers/qwen2");
  const auto data =
      LoadData(Options("gsm8k_test.jsonl", DataFormat::kChat, text), &text);
  EXPECT_THAT(std::string(data.status().message()),
              HasSubstr("1319 bad records of 1319 (correct the data, or set "
                        "data.on_bad_record: skip):\ngsm8k_test.jsonl:1: "
                        "lacks \"messages\" (it has \"question\", "
                        "\"answer\")"));
}

}  // namespace
}  // namespace qlora::trainer
