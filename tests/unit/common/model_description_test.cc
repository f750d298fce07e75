#include "common/spec/model_description.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "common/base/files.h"
#include "common/formats/safetensors.h"
#include "common/spec/memory_plan.h"
#include "tests/shared_data.h"

namespace qlora {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

Json Llama() {
  return Json{{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"hidden_size", 64},
              {"intermediate_size", 172},
              {"num_attention_heads", 8},
              {"num_hidden_layers", 5},
              {"num_key_value_heads", 4},
              {"max_position_embeddings", 512},
              {"vocab_size", 512}};
}

Json With(Json config, const Json& changes) {
  config.update(changes);
  return config;
}

absl::Status Error(const Json& config) {
  return ParseModelConfig(config.dump()).status();
}

TEST(ModelDescriptionTest, Parse_RealConfigs_GivesTheirShapes) {
  SKIP_WITHOUT_SHARED_DATA();
  const std::string data = SharedData();
  const auto stories = ReadModelDescription(data + "/models/stories260K");
  ASSERT_TRUE(stories.ok()) << stories.status();
  EXPECT_EQ(stories->architecture, "llama");
  EXPECT_EQ(stories->head_dim, 8);
  EXPECT_EQ(stories->kv_size(), 32);
  EXPECT_TRUE(stories->tie_word_embeddings);
  EXPECT_THAT(stories->eos_token_ids, ElementsAre(2));
  EXPECT_EQ(stories->bos_token_id, 1);
  EXPECT_THAT(stories->rope_inv_freq,
              ElementsAre(1.0f, 0.1f, testing::FloatEq(0.01f),
                          testing::FloatEq(0.001f)));
  const auto reader =
      SafetensorsReader::OpenModel(data + "/models/stories260K");
  int64_t elements = 0;
  for (const TensorInfo& info : (*reader)->tensors()) {
    elements += info.num_elements();
  }
  EXPECT_EQ(ParameterCount(*stories), elements);

  const auto qwen2 = ReadModelDescription(data + "/tokenizers/qwen2");
  ASSERT_TRUE(qwen2.ok()) << qwen2.status();
  EXPECT_TRUE(qwen2->q_bias && qwen2->k_bias && qwen2->v_bias);
  EXPECT_FALSE(qwen2->o_bias);
  EXPECT_EQ(qwen2->torch_dtype, "bfloat16");
  EXPECT_THAT(qwen2->eos_token_ids, ElementsAre(151645, 151643));
  EXPECT_EQ(ParameterCount(*qwen2), 1'543'714'304);
}

// Values of an independent float32 emulation of the published rule.
TEST(ModelDescriptionTest, Rope_Llama3_MatchesReference) {
  const Json scaling = {{"rope_type", "llama3"},
                        {"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  const Json sizes = {{"head_dim", 128}, {"hidden_size", 1024}};
  const auto old_form =
      ParseModelConfig(With(With(Llama(), sizes), {{"rope_theta", 500000.0},
                                                   {"rope_scaling", scaling}})
                           .dump());
  const auto new_form = ParseModelConfig(
      With(With(Llama(), sizes),
           {{"rope_parameters", With(scaling, {{"rope_theta", 5e5}})}})
          .dump());
  ASSERT_TRUE(old_form.ok()) << old_form.status();
  ASSERT_TRUE(new_form.ok()) << new_form.status();
  EXPECT_EQ(old_form->rope_inv_freq, new_form->rope_inv_freq);
  EXPECT_EQ(old_form->context_length, old_form->max_position_embeddings);
  const std::vector<std::pair<int, float>> expected = {
      {28, 0.00321144599f},  {29, 0.00216657076f},  {31, 0.000856751413f},
      {34, 0.000178507813f}, {35, 9.55621235e-05f}, {36, 7.78465527e-05f},
      {63, 3.06892599e-07f}};
  for (const auto& [i, value] : expected) {
    EXPECT_NEAR(old_form->rope_inv_freq[i], value, 2e-7 * value) << i;
  }
}

TEST(ModelDescriptionTest, Rope_LinearAndPerLayerForms_Scale) {
  const auto linear = ParseModelConfig(
      With(Llama(), {{"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}})
          .dump());
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_FLOAT_EQ(linear->rope_inv_freq[0], 0.25f);
  EXPECT_EQ(linear->context_length, 4 * linear->max_position_embeddings);
  const auto layered = ParseModelConfig(
      With(Llama(), {{"rope_parameters",
                      {{"full_attention",
                        {{"rope_type", "default"}, {"rope_theta", 1.0}}}}}})
          .dump());
  ASSERT_TRUE(layered.ok()) << layered.status();
  EXPECT_THAT(layered->rope_inv_freq, ElementsAre(1, 1, 1, 1));
}

TEST(ModelDescriptionTest, Parse_FamilyDefaults_FollowTransformers) {
  Json mistral = With(Llama(), {{"architectures", {"MistralForCausalLM"}},
                                {"model_type", "mistral"}});
  mistral.erase("num_key_value_heads");
  // Its window of 4096 lies beyond 512 positions.
  const auto model = ParseModelConfig(mistral.dump());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->num_kv_heads, 8);
  mistral["num_key_value_heads"] = nullptr;
  EXPECT_EQ(ParseModelConfig(mistral.dump())->num_kv_heads, 8);
  EXPECT_EQ(model->eos_token_ids.size(), 0u);

  const auto ids =
      ParseModelConfig(With(Llama(), {{"eos_token_id", {2, 3}}}).dump(),
                       R"({"eos_token_id":5})");
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_THAT(ids->eos_token_ids, ElementsAre(2, 3, 5));
}

TEST(ModelDescriptionTest, Parse_Unsupported_SaysWhyAndWhatIs) {
  const std::vector<std::pair<Json, std::string>> cases = {
      {{{"architectures", {"BertModel"}}, {"model_type", "bert"}},
       "supported are LlamaForCausalLM"},
      {{{"architectures", {"LlamaForSequenceClassification"}}},
       "LlamaForSequenceClassification"},
      {{{"model_type", "qwen2"}}, "architectures"},
      {{{"hidden_act", "relu2"}}, "hidden_act"},
      {{{"head_dim", 258}}, "head_dim is 258; supported"},
      {{{"hidden_size", 4096}}, "head_dim is 512; supported"},
      {{{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}}},
       "rope_scaling.type is \"yarn\"; supported are default, linear"},
      {{{"partial_rotary_factor", 0.5}}, "partial_rotary_factor"},
      {{{"torch_dtype", "float8_e4m3fn"}}, "torch_dtype"},
      {{{"quantization_config", {{"quant_method", "gptq"}}}},
       "quantized already"},
      {{{"layer_types", {"full_attention", "sliding_attention"}}},
       "layer_types"},
      {{{"architectures", {"MistralForCausalLM"}},
        {"model_type", "mistral"},
        {"sliding_window", 128}},
       "sliding_window is 128, below max_position_embeddings (512)"},
      {{{"architectures", {"Qwen2ForCausalLM"}},
        {"model_type", "qwen2"},
        {"use_sliding_window", true},
        {"max_window_layers", 2},
        {"sliding_window", 128}},
       "sliding_window"},
  };
  for (const auto& [changes, message] : cases) {
    const absl::Status status = Error(With(Llama(), changes));
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("config.json"), HasSubstr(message)));
  }
}

TEST(ModelDescriptionTest, Parse_EveryActivation_IsTaken) {
  const std::pair<const char*, Activation> cases[] = {
      {"silu", Activation::kSilu},
      {"swish", Activation::kSilu},
      {"gelu", Activation::kGelu},
      {"gelu_new", Activation::kGeluTanh},
      {"gelu_pytorch_tanh", Activation::kGeluTanh}};
  for (const auto& [name, activation] : cases) {
    const auto model =
        ParseModelConfig(With(Llama(), {{"hidden_act", name}}).dump());
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->activation, activation) << name;
  }
}

TEST(ModelDescriptionTest, Parse_LargestHead_IsTaken) {
  const auto model =
      ParseModelConfig(With(Llama(), {{"head_dim", 256}}).dump());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->head_dim, 256);
}

TEST(ModelDescriptionTest, Parse_Hostile_NamesTheField) {
  const std::vector<std::pair<Json, std::string>> cases = {
      {{{"hidden_size", 0}}, "hidden_size must be an integer from 1"},
      {{{"hidden_size", -64}}, "hidden_size"},
      {{{"hidden_size", "64"}}, "not \"64\""},
      {{{"hidden_size", 64.5}}, "hidden_size"},
      {{{"hidden_size", 18446744073709551615u}}, "hidden_size"},
      {{{"hidden_size", 65}}, "does not divide"},
      {{{"vocab_size", nullptr}}, "vocab_size is missing"},
      {{{"num_attention_heads", 0}}, "num_attention_heads"},
      {{{"num_key_value_heads", 3}}, "does not divide num_attention_heads"},
      {{{"num_hidden_layers", 1000000}}, "num_hidden_layers"},
      {{{"head_dim", 7}}, "even"},
      {{{"head_dim", 16384}, {"num_attention_heads", 16384}}, "1048576"},
      {{{"rms_norm_eps", 0}}, "rms_norm_eps"},
      {{{"rms_norm_eps", "x"}}, "rms_norm_eps"},
      {{{"rope_theta", -1}}, "rope_theta"},
      {{{"rope_scaling", 3}}, "rope_scaling must be an object"},
      {{{"rope_scaling", {{"type", "llama3"}, {"factor", 8}}}},
       "rope_scaling.low_freq_factor is missing"},
      {{{"tie_word_embeddings", 1}}, "tie_word_embeddings"},
      {{{"eos_token_id", 512}}, "eos_token_id must be a token id below"},
      {{{"eos_token_id", {1, "x"}}}, "eos_token_id"},
      {{{"architectures", 3}}, "architectures must be a list"},
  };
  std::vector<int> many(257);
  std::iota(many.begin(), many.end(), 0);
  EXPECT_THAT(
      std::string(Error(With(Llama(), {{"eos_token_id", many}})).message()),
      HasSubstr("eos_token_id lists more than 256 ids"));
  for (const auto& [changes, message] : cases) {
    const absl::Status status = Error(With(Llama(), changes));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  EXPECT_THAT(ParseModelConfig("{").status().message(), HasSubstr("not JSON"));
  EXPECT_THAT(ParseModelConfig("[]").status().message(), HasSubstr("object"));
  EXPECT_THAT(ParseModelConfig("{}").status().message(),
              HasSubstr("model_type is missing"));
  const std::string deep(1 << 20, '[');
  EXPECT_THAT(ParseModelConfig(deep).status().message(),
              HasSubstr("nested deeper than 100"));
  EXPECT_THAT(ParseModelConfig("{\"model_type\": " + deep +
                               std::string(1 << 20, ']') + "}")
                  .status()
                  .message(),
              HasSubstr("nested deeper than 100"));
  EXPECT_TRUE(absl::IsNotFound(ReadModelDescription("/nowhere").status()));
}

TEST(ModelDescriptionTest, MatchTargetModules_FollowsPeft) {
  const auto model = *ParseModelConfig(Llama().dump());
  const auto all = *MatchTargetModules(model, {});
  EXPECT_EQ(all.size(), 35u);
  EXPECT_EQ(all, *MatchTargetModules(model, {"All-Linear"}));
  const auto qv = *MatchTargetModules(model, {"q_proj", "v_proj"});
  EXPECT_EQ(qv.size(), 10u);
  EXPECT_EQ(qv[1], "model.layers.0.self_attn.v_proj");
  EXPECT_EQ(MatchTargetModules(model, {"mlp.up_proj"})->size(), 5u);
  EXPECT_THAT(*MatchTargetModules(model, {"model.layers.3.self_attn.q_proj"}),
              ElementsAre("model.layers.3.self_attn.q_proj"));
  EXPECT_TRUE(absl::IsInvalidArgument(
      MatchTargetModules(model, std::vector<std::string>(1025, "q_proj"))
          .status()));
  // A suffix begins after a dot.
  const auto none = MatchTargetModules(model, {"q_proj", "proj"});
  EXPECT_TRUE(absl::IsInvalidArgument(none.status()));
  EXPECT_THAT(none.status().message(),
              AllOf(HasSubstr("'proj'"), HasSubstr("gate_proj")));
  EXPECT_TRUE(
      absl::IsUnimplemented(MatchTargetModules(model, {"lm_head"}).status()));
}

TEST(ModelDescriptionTest, MatchTargetModules_Typo_NamesTheNearest) {
  const auto model = *ParseModelConfig(Llama().dump());
  EXPECT_THAT(MatchTargetModules(model, {"q_prj"}).status().message(),
              testing::HasSubstr("did you mean q_proj?"));
  EXPECT_THAT(MatchTargetModules(model, {"attention"}).status().message(),
              testing::Not(testing::HasSubstr("did you mean")));
}

// The largest sizes that a config and a job file may have.
TEST(MemoryPlanTest, HugeModel_DoesNotFitAndOverflowsNothing) {
  const auto model =
      *ParseModelConfig(With(Llama(), {{"vocab_size", 1 << 26},
                                       {"hidden_size", 1 << 18},
                                       {"intermediate_size", 1 << 20},
                                       {"num_hidden_layers", 4096},
                                       {"num_attention_heads", 1 << 14},
                                       {"num_key_value_heads", 1 << 14},
                                       {"head_dim", 64}})
                            .dump());
  for (const Method method : {Method::kQlora, Method::kLora, Method::kFull}) {
    JobSpec spec;
    spec.method = method;
    spec.lora.rank = 4096;
    spec.data.max_seq_len = 1 << 20;
    spec.train.global_batch_size = 1 << 20;
    spec.train.micro_batch_size = 1 << 20;
    for (const int64_t budget : {int64_t{0}, int64_t{1} << 62}) {
      const absl::Status status = PlanMemory({.model = &model,
                                              .spec = &spec,
                                              .world_size = 1,
                                              .budget = budget,
                                              .threads = 1024})
                                      .status();
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      EXPECT_THAT(std::string(status.message()), Not(HasSubstr(" -")));
    }
  }
}

}  // namespace
}  // namespace qlora
