#include "common/spec/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "tests/shared_data.h"

namespace qlora {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelDescription Tiny() {
  auto model = ParseModelConfig(R"({"architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2", "vocab_size": 8, "hidden_size": 4,
    "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1})");
  EXPECT_TRUE(model.ok()) << model.status();
  return *model;
}

std::string FitOf(const std::string& tokenizer) {
  return std::string(CheckTokenizer(tokenizer, Tiny()).message());
}

TEST(CheckTokenizer, VocabularyWithinTheModels_Fits) {
  EXPECT_EQ(FitOf(R"({"model": {"vocab": {"a": 0, "b": 7}}})"), "");
  // Unigram: the place is the id.
  EXPECT_EQ(FitOf(R"({"model": {"vocab": [["a", 0.0], ["b", -1.5]]}})"), "");
  // Padding that was added beyond the vocabulary harms nobody.
  EXPECT_EQ(FitOf(R"({"added_tokens": [{"id": 8, "content": "<pad>"}],
                      "model": {"vocab": {"a": 0}, "merges": [["a", "b"]]}})"),
            "");
}

TEST(CheckTokenizer, LargerVocabulary_IsRefusedByItsLastToken) {
  EXPECT_THAT(FitOf(R"({"model": {"vocab": {"a": 8, "b": 1}, "x": {"c": 9}}})"),
              AllOf(HasSubstr("up to id 8 (\"a\")"),
                    HasSubstr("vocab_size in config.json is 8")));
  std::string unigram = R"({"model": {"type": "Unigram", "vocab": [["t0", 0])";
  for (int i = 1; i <= 10; ++i) absl::StrAppend(&unigram, ",[\"t", i, "\",-1]");
  EXPECT_THAT(FitOf(unigram + "]}}"), HasSubstr("up to id 10 (\"t10\")"));
}

TEST(CheckTokenizer, WhatIsNone_IsRefused) {
  EXPECT_THAT(FitOf("{\"model\": "), HasSubstr("is not JSON"));
  EXPECT_THAT(FitOf("{}"), HasSubstr("no model.vocab"));
  EXPECT_THAT(FitOf(R"({"vocab": {"a": 99}, "y": {"model": {"vocab": 1}}})"),
              HasSubstr("no model.vocab"));
  EXPECT_THAT(FitOf(std::string(200'000, '[')), HasSubstr("is not JSON"));
}

TEST(CheckTokenizer, RealOnes_FitTheirModelsOnly) {
  SKIP_WITHOUT_SHARED_DATA();
  const auto stories =
      ReadModelDescription(SharedData() + "/models/stories260K");
  ASSERT_TRUE(stories.ok()) << stories.status();
  const auto fits = [&](const std::string& directory) {
    return CheckTokenizer(
        ReadFile(SharedData() + directory + "/tokenizer.json").value(),
        *stories);
  };
  EXPECT_TRUE(fits("/models/stories260K").ok());
  EXPECT_THAT(std::string(fits("/tokenizers/llama2").message()),
              HasSubstr("up to id 31999"));
  EXPECT_THAT(std::string(fits("/tokenizers/t5-small").message()),
              HasSubstr("vocab_size in config.json is 512"));
}

class CheckModelTensorsTest : public ::testing::Test {
 protected:
  CheckModelTensorsTest() {
    const ModelDescription model = Tiny();
    Add("model.embed_tokens.weight", {8, 4});
    Add("model.norm.weight", {4});
    Add("lm_head.weight", {8, 4});
    for (int layer = 0; layer < model.num_layers; ++layer) {
      const std::string prefix = absl::StrCat("model.layers.", layer, ".");
      Add(prefix + "input_layernorm.weight", {4});
      Add(prefix + "post_attention_layernorm.weight", {4});
      for (const LinearShape& linear : BlockLinears(model)) {
        Add(prefix + linear.name + ".weight",
            {linear.out_features, linear.in_features});
        if (linear.bias) {
          Add(prefix + linear.name + ".bias", {linear.out_features});
        }
      }
    }
  }
  void Add(const std::string& name, std::vector<int64_t> shape) {
    tensors_[name] = {name, TensorDtype::kBF16, std::move(shape), 0};
  }
  std::string Check() {
    return std::string(CheckModelTensors(Tiny(), [&](const std::string& name) {
                         const auto it = tensors_.find(name);
                         return it == tensors_.end() ? nullptr : &it->second;
                       }).message());
  }
  std::map<std::string, TensorInfo> tensors_;
};

TEST_F(CheckModelTensorsTest, EveryTensor_IsNeeded) {
  EXPECT_EQ(Check(), "");
  for (const auto& [name, tensor] : std::map(tensors_)) {
    tensors_.erase(name);
    EXPECT_THAT(Check(), HasSubstr("no tensor " + name + " ["));
    tensors_[name] = tensor;
  }
}

TEST_F(CheckModelTensorsTest, WrongShapeOrType_IsNamed) {
  const std::string name = "model.layers.1.self_attn.k_proj.bias";
  tensors_[name].shape = {4};
  EXPECT_THAT(Check(), HasSubstr("tensor " + name +
                                 " has shape [4]; config.json asks for [2]"));
  tensors_[name].shape = {2};
  tensors_[name].dtype = TensorDtype::kI32;
  EXPECT_THAT(Check(), HasSubstr("is of type I32; supported are F32"));
}

}  // namespace
}  // namespace qlora
