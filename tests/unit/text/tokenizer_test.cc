#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/base/files.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/shared_data.h"
#include "worker/text/text.h"

namespace qlora::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string Read(const std::string& path) {
  absl::StatusOr<std::string> content = ReadFile(path);
  EXPECT_TRUE(content.ok()) << content.status().message();
  return content.value_or("");
}

std::unique_ptr<Tokenizer> OpenShared(const std::string& name) {
  auto tokenizer = Tokenizer::Open(SharedData() + "/" + name);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return tokenizer.ok() ? std::move(*tokenizer) : nullptr;
}

std::vector<std::string> Split(const std::string& text,
                               const std::string& separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t at; (at = text.find(separator, begin)) != std::string::npos;
       begin = at + separator.size()) {
    parts.push_back(text.substr(begin, at - begin));
  }
  parts.push_back(text.substr(begin));
  return parts;
}

std::string Temporary(const std::string& name) {
  const std::string path = ::testing::TempDir() + "/qlora_text_" + name;
  std::filesystem::create_directories(path);
  return path;
}

class LlamaCppVectors : public ::testing::TestWithParam<const char*> {};
class TokenizerVectors : public ::testing::TestWithParam<const char*> {};

TEST_P(LlamaCppVectors, Texts_Encoded_GiveTheirIds) {
  SKIP_WITHOUT_SHARED_DATA();
  const std::string name = std::string("tokenizers/") + GetParam();
  const std::string directory = SharedData() + "/" + name;
  const auto tokenizer = OpenShared(name);
  ASSERT_NE(tokenizer, nullptr);
  std::vector<std::string> texts =
      Split(Read(directory + "/vectors.inp"), "\n__ggml_vocab_test__\n");
  texts.pop_back();
  std::istringstream expected(Read(directory + "/vectors.out"));
  ASSERT_EQ(texts.size(), 46);
  for (const std::string& text : texts) {
    std::string line;
    ASSERT_TRUE(std::getline(expected, line));
    std::istringstream numbers(line);
    const std::vector<int32_t> ids{std::istream_iterator<int32_t>(numbers), {}};
    const auto encoding = tokenizer->Encode(text, false);
    ASSERT_TRUE(encoding.ok()) << encoding.status().message();
    EXPECT_EQ(encoding->ids, ids) << "text: " << text;
  }
}

TEST_P(TokenizerVectors, MoreTexts_EncodedWithAndWithoutSpecials_GiveTheirIds) {
  SKIP_WITHOUT_SHARED_DATA();
  const std::string name = std::string("tokenizers/") + GetParam();
  const auto tokenizer = OpenShared(name);
  ASSERT_NE(tokenizer, nullptr);
  const Json vectors =
      Json::parse(Read(SharedData() + "/" + name + "/extra_vectors.json"));
  ASSERT_GT(vectors.size(), 50);
  for (const Json& vector : vectors) {
    const std::string text = vector["text"];
    const auto with = tokenizer->Encode(text, true);
    const auto without = tokenizer->Encode(text, false);
    ASSERT_TRUE(with.ok() && without.ok());
    EXPECT_EQ(with->ids, vector["ids"].get<std::vector<int32_t>>()) << text;
    EXPECT_EQ(without->ids,
              vector["ids_no_special"].get<std::vector<int32_t>>())
        << text;
    for (size_t i = 0; i < without->ids.size(); ++i) {
      ASSERT_LE(without->starts[i], without->ends[i]);
      ASSERT_LE(without->ends[i], text.size());
      ASSERT_LT(without->ids[i], tokenizer->id_bound());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, LlamaCppVectors,
                         ::testing::Values("gpt2", "llama2", "llama3", "qwen2",
                                           "roberta-base", "bert-uncased"));
INSTANTIATE_TEST_SUITE_P(Families, TokenizerVectors,
                         ::testing::Values("gpt2", "llama2", "llama3", "qwen2",
                                           "roberta-base", "bert-uncased",
                                           "t5-small", "minimind"));

TEST(Tokenizer, ByteOffsets_CoverTheText) {
  SKIP_WITHOUT_SHARED_DATA();
  for (const char* name : {"gpt2", "llama3", "qwen2", "minimind"}) {
    const auto tokenizer = OpenShared(std::string("tokenizers/") + name);
    ASSERT_NE(tokenizer, nullptr);
    const std::string text = "naïve café — 日本語 😀 done";
    const auto encoding = tokenizer->Encode(text, false);
    ASSERT_TRUE(encoding.ok());
    EXPECT_EQ(encoding->ends.back(), text.size()) << name;
    EXPECT_EQ(text.substr(encoding->starts.back()).find("done"),
              text.substr(encoding->starts.back()).size() - 4);
  }
}

TEST(Tokenizer, ModelTokenizers_DecodeWhatTheyEncoded) {
  SKIP_WITHOUT_SHARED_DATA();
  for (const char* name : {"stories260K", "llama2xs-281K"}) {
    const auto tokenizer = OpenShared(std::string("models/") + name);
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_EQ(tokenizer->vocab_size(), 512);
    EXPECT_EQ(tokenizer->id_bound(), 512);
    const std::string text = "Once upon a time, there was a café.\n\n😀";
    const auto encoding = tokenizer->Encode(text, true);
    ASSERT_TRUE(encoding.ok());
    EXPECT_EQ(encoding->ids[0], 1);
    const auto decoded = tokenizer->Decode(encoding->ids, true);
    ASSERT_TRUE(decoded.ok());
    EXPECT_EQ(*decoded, text);
  }
}

TEST(Tokenizer, Trajectory_TrainingText_GivesTheRecordedIds) {
  SKIP_WITHOUT_SHARED_DATA();
  const auto tokenizer = OpenShared("models/stories260K");
  ASSERT_NE(tokenizer, nullptr);
  const std::string text =
      Read(SharedData() + "/datasets/tiny_shakespeare.txt").substr(0, 200000);
  const Json recorded = Json::parse(Read(
      SharedData() + "/adapters/stories260K-shakespeare-lora/train_ids.json"));
  const Json& ids = recorded.is_array() ? recorded : recorded["ids"];
  const auto encoding = tokenizer->Encode(text, true);
  ASSERT_TRUE(encoding.ok());
  EXPECT_EQ(encoding->ids, ids.get<std::vector<int32_t>>());
}

TEST(Tokenizer, BadInput_IsRefusedWithTheReason) {
  const auto absent = Tokenizer::Open("/nonexistent/model");
  EXPECT_TRUE(absl::IsNotFound(absent.status())) << absent.status();
  EXPECT_THAT(std::string(absent.status().message()),
              HasSubstr("/nonexistent/model/tokenizer.json"));

  const std::string directory = Temporary("broken");
  for (const char* content : {"", "{", "[]", R"({"model": 3})"}) {
    std::ofstream(directory + "/tokenizer.json") << content;
    const auto broken = Tokenizer::Open(directory);
    EXPECT_TRUE(absl::IsInvalidArgument(broken.status())) << broken.status();
    EXPECT_THAT(std::string(broken.status().message()),
                HasSubstr("tokenizer.json"));
  }
}

TEST(Tokenizer, TextThatIsNotUtf8_IsRefusedWithThePlace) {
  SKIP_WITHOUT_SHARED_DATA();
  const auto tokenizer = OpenShared("models/stories260K");
  ASSERT_NE(tokenizer, nullptr);
  const auto encoding = tokenizer->Encode("ab\xff", false);
  EXPECT_TRUE(absl::IsInvalidArgument(encoding.status()));
  EXPECT_THAT(std::string(encoding.status().message()), HasSubstr("byte 2"));
  EXPECT_FALSE(tokenizer->TokenToId("no such token at all").has_value());
}

std::string TrainBpe(const std::vector<std::string>& files, uint32_t vocab_size,
                     const std::string& special, const std::string& out) {
  std::vector<const char*> names;
  for (const std::string& file : files) names.push_back(file.c_str());
  QloraString error = {};
  const int failed = qlora_tokenizer_train_bpe(
      names.data(), names.size(), vocab_size, special.data(), special.size(),
      out.data(), out.size(), &error);
  if (failed == 0) return "";
  const std::string message(error.data, error.size);
  qlora_text_free_string(&error);
  return message;
}

TEST(TrainBpe, SameText_GivesTheSameFileThatRoundTrips) {
  const std::string directory = Temporary("bpe");
  const std::string corpus = directory + "/corpus.txt";
  std::ofstream out(corpus);
  for (int i = 0; i < 300; ++i) {
    out << "The quick brown fox number " << i
        << " jumps over the lazy dog, naïvely.\nAnd again!\n";
  }
  out.close();
  const std::string special = R"(["<s>", "</s>"])";
  const std::string path = directory + "/tokenizer.json";
  ASSERT_EQ(TrainBpe({corpus}, 400, special, path), "");
  ASSERT_EQ(TrainBpe({corpus}, 400, special, directory + "/again.json"), "");
  EXPECT_EQ(Read(path), Read(directory + "/again.json"));

  const auto tokenizer = Tokenizer::Open(directory);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->id_bound(), (*tokenizer)->vocab_size());
  EXPECT_GT((*tokenizer)->vocab_size(), 300);
  EXPECT_LE((*tokenizer)->vocab_size(), 400);
  EXPECT_EQ((*tokenizer)->TokenToId("<s>"), 0);
  EXPECT_EQ((*tokenizer)->TokenToId("</s>"), 1);
  const std::string text = "<s>The quick 日本\t\x01 fox</s>";
  const auto encoding = (*tokenizer)->Encode(text, true);
  ASSERT_TRUE(encoding.ok());
  EXPECT_EQ(encoding->ids.front(), 0);
  EXPECT_EQ(encoding->ids.back(), 1);
  EXPECT_EQ(*(*tokenizer)->Decode(encoding->ids, false), text);
}

TEST(TrainBpe, BadArguments_AreRefused) {
  const std::string directory = Temporary("bpe_bad");
  const std::string corpus = directory + "/corpus.txt";
  std::ofstream(corpus) << "text";
  const std::string out = directory + "/tokenizer.json";
  EXPECT_THAT(TrainBpe({corpus}, 100, "[]", out), HasSubstr("too small"));
  EXPECT_THAT(TrainBpe({corpus}, 300, "{}", out), HasSubstr("special_tokens"));
  EXPECT_THAT(TrainBpe({"/nonexistent"}, 300, "[]", out),
              HasSubstr("/nonexistent"));
  EXPECT_THAT(TrainBpe({}, 300, "[]", out), HasSubstr("no text"));
  EXPECT_THAT(TrainBpe({corpus}, 300, "[]", "/nonexistent/t.json"),
              HasSubstr("cannot write"));
}

}  // namespace
}  // namespace qlora::text
