#include "worker/trainer/checkpoint/adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/files.h"
#include "tests/shared_data.h"
#include "worker/trainer/checkpoint/job_output.h"

namespace qlora::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

ModelDescription TinyModel() {
  return *ParseModelConfig(R"({"architectures": ["LlamaForCausalLM"],
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
    "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 2, "vocab_size": 16})");
}

// As the model lays out the adapters of some modules.
TrainableLayout LayoutOf(const ModelDescription& model, int rank,
                         const std::vector<std::string>& modules) {
  TrainableLayout layout;
  const auto add = [&](std::string name, int64_t rows, int64_t columns) {
    layout.tensors.push_back(
        {std::move(name), {rows, columns}, layout.total, rows * columns});
    layout.total += rows * columns;
  };
  for (const std::string& module : modules) {
    for (const LinearShape& linear : BlockLinears(model)) {
      if (!module.ends_with("." + linear.name)) continue;
      add(module + ".lora_A.weight", rank, linear.in_features);
      add(module + ".lora_B.weight", linear.out_features, rank);
    }
  }
  return layout;
}

class AdapterTest : public ::testing::Test {
 protected:
  AdapterTest() : model_(TinyModel()) {
    std::string pattern = fs::temp_directory_path() / "qlora-adapter-XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
    modules_ = *MatchTargetModules(model_, {"q_proj", "down_proj"});
    layout_ = LayoutOf(model_, 2, modules_);
    params_.resize(layout_.total);
    for (size_t i = 0; i < params_.size(); ++i) {
      params_[i] = static_cast<float>(i) / 7;
    }
  }
  ~AdapterTest() override { fs::remove_all(dir_); }

  void Write() {
    const absl::Status status = WriteAdapter(
        dir_, {"tiny", 2, 4, 0.1, false}, model_, modules_, layout_, params_);
    ASSERT_TRUE(status.ok()) << status;
  }
  void ChangeConfig(const Json& changes) {
    const std::string path = dir_ + "/adapter_config.json";
    Json json = Json::parse(*ReadFile(path));
    json.update(changes);
    std::ofstream(path) << json.dump(2);
  }

  std::string dir_;
  ModelDescription model_;
  std::vector<std::string> modules_;
  TrainableLayout layout_;
  std::vector<float> params_;
};

TEST_F(AdapterTest, Write_ThenRead_IsTheSame) {
  Write();
  const auto adapter = OpenAdapter(dir_);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->config.rank, 2);
  EXPECT_EQ(adapter->config.dropout, 0.1);
  EXPECT_EQ(adapter->config.scale(), 2.0f);
  EXPECT_EQ(adapter->tensors->metadata().at("format"), "pt");
  const auto options = LoraOptionsOf(*adapter, model_);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->modules, modules_);
  std::vector<float> back(layout_.total);
  ASSERT_TRUE(ReadAdapter(*adapter, layout_, back).ok());
  EXPECT_EQ(back, params_);
  const Json config = Json::parse(*ReadFile(dir_ + "/adapter_config.json"));
  EXPECT_EQ(config["target_modules"], Json({"down_proj", "q_proj"}));
  EXPECT_TRUE(config["lora_alpha"].is_number_integer());
  EXPECT_EQ(config["inference_mode"], true);
}

TEST_F(AdapterTest, Write_SomeLayersOnly_NamesTheModules) {
  modules_ = {"model.layers.1.self_attn.q_proj"};
  layout_ = LayoutOf(model_, 2, modules_);
  params_.resize(layout_.total);
  Write();
  const Json config = Json::parse(*ReadFile(dir_ + "/adapter_config.json"));
  EXPECT_EQ(config["target_modules"],
            Json({"model.layers.1.self_attn.q_proj"}));
}

TEST_F(AdapterTest, Read_RealAdapter_FitsItsModel) {
  SKIP_WITHOUT_SHARED_DATA();
  const std::string data = SharedData();
  const std::string directory = data + "/adapters/stories260K-shakespeare-lora";
  const auto model = ReadModelDescription(data + "/models/stories260K");
  const auto adapter = OpenAdapter(directory);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->config.rank, 8);
  EXPECT_EQ(adapter->config.scale(), 2.0f);
  const auto options = LoraOptionsOf(*adapter, *model);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->modules, *MatchTargetModules(*model, {}));
  const TrainableLayout layout = LayoutOf(*model, 8, options->modules);
  std::vector<float> params(layout.total);
  ASSERT_TRUE(ReadAdapter(*adapter, layout, params).ok());

  // Written again by us, the tensors and their file order are the same.
  ASSERT_TRUE(WriteAdapter(dir_, adapter->config, *model, options->modules,
                           layout, params)
                  .ok());
  const auto again = OpenAdapter(dir_);
  ASSERT_TRUE(again.ok()) << again.status();
  std::vector<float> back(layout.total);
  ASSERT_TRUE(ReadAdapter(*again, layout, back).ok());
  EXPECT_EQ(back, params);

  const auto gpt2 = OpenAdapter(data + "/adapters/gpt2-tigrinya-lora");
  EXPECT_TRUE(absl::IsUnimplemented(gpt2.status())) << gpt2.status();
  EXPECT_THAT(gpt2.status().message(), HasSubstr("fan_in_fan_out"));
}

TEST_F(AdapterTest, Read_HalfPrecision_Converts) {
  Write();
  std::vector<std::vector<uint16_t>> halves;
  std::vector<TensorToWrite> tensors;
  for (const TrainableTensor& tensor : layout_.tensors) {
    halves.emplace_back(tensor.size, uint16_t{0x3fc0});  // 1.5 as bfloat16
    tensors.push_back({"base_model.model." + tensor.name,
                       TensorDtype::kBF16,
                       tensor.shape,
                       {reinterpret_cast<const uint8_t*>(halves.back().data()),
                        halves.back().size() * 2}});
  }
  ASSERT_TRUE(
      WriteSafetensors(dir_ + "/adapter_model.safetensors", tensors, {}).ok());
  const auto adapter = OpenAdapter(dir_);
  ASSERT_TRUE(adapter.ok());
  std::vector<float> back(layout_.total);
  ASSERT_TRUE(ReadAdapter(*adapter, layout_, back).ok());
  EXPECT_EQ(back, std::vector<float>(layout_.total, 1.5f));
}

TEST_F(AdapterTest, Open_Variants_AreRefusedByName) {
  const std::vector<std::pair<Json, std::string>> cases = {
      {{{"use_dora", true}}, "use_dora is true"},
      {{{"modules_to_save", {"lm_head"}}}, "modules_to_save"},
      {{{"rank_pattern", {{"q_proj", 4}}}}, "rank_pattern"},
      {{{"bias", "all"}}, "bias"},
      {{{"lora_bias", true}}, "lora_bias"},
      {{{"peft_type", "LOHA"}}, "only LORA"},
      {{{"init_lora_weights", "pissa_niter_4"}}, "changes the base model"},
      {{{"trainable_token_indices", {1}}}, "trainable_token_indices"},
  };
  for (const auto& [changes, message] : cases) {
    Write();
    ChangeConfig(changes);
    const auto adapter = OpenAdapter(dir_);
    EXPECT_TRUE(absl::IsUnimplemented(adapter.status())) << adapter.status();
    EXPECT_THAT(adapter.status().message(), HasSubstr(message));
  }
  for (const Json& fine :
       {Json{{"use_rslora", true}}, Json{{"modules_to_save", Json::array()}},
        Json{{"init_lora_weights", "gaussian"}}, Json{{"r", 2}}}) {
    Write();
    ChangeConfig(fine);
    EXPECT_TRUE(OpenAdapter(dir_).ok()) << fine;
  }
  Write();
  ChangeConfig({{"r", "8"}});
  EXPECT_TRUE(absl::IsInvalidArgument(OpenAdapter(dir_).status()));
  std::ofstream(dir_ + "/adapter_config.json") << "{\"r\": 8}";
  EXPECT_THAT(OpenAdapter(dir_).status().message(),
              HasSubstr("peft_type is missing"));
  std::ofstream(dir_ + "/adapter_config.json") << "{";
  EXPECT_THAT(OpenAdapter(dir_).status().message(), HasSubstr("not JSON"));
  EXPECT_TRUE(absl::IsNotFound(OpenAdapter(dir_ + "/no").status()));
}

TEST_F(AdapterTest, Read_WrongTensors_SayWhich) {
  Write();
  const auto adapter = *OpenAdapter(dir_);
  std::vector<float> back(layout_.total);
  // The job adapts more, or fewer, modules.
  const auto more = *MatchTargetModules(model_, {"q_proj", "up_proj"});
  const TrainableLayout other = LayoutOf(model_, 2, more);
  back.resize(other.total);
  EXPECT_THAT(ReadAdapter(adapter, other, back).message(),
              HasSubstr("mlp.up_proj.lora_A.weight' is missing"));
  const TrainableLayout fewer =
      LayoutOf(model_, 2, *MatchTargetModules(model_, {"q_proj"}));
  back.resize(fewer.total);
  EXPECT_THAT(ReadAdapter(adapter, fewer, back).message(),
              HasSubstr("does not name"));
  ChangeConfig({{"r", 4}});
  EXPECT_THAT(LoraOptionsOf(*OpenAdapter(dir_), model_).status().message(),
              HasSubstr("has shape [2, 8] where [4, 8] is needed"));
  ModelDescription one_layer = model_;
  one_layer.num_layers = 1;
  EXPECT_THAT(LoraOptionsOf(adapter, one_layer).status().message(),
              HasSubstr("belongs to no linear layer of this model"));
}

TEST_F(AdapterTest, Read_ValueThatIsNotFinite_IsRefusedByName) {
  params_[3] = std::nanf("");
  Write();
  std::vector<float> back(layout_.total);
  const absl::Status status = ReadAdapter(*OpenAdapter(dir_), layout_, back);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(status.message(),
              HasSubstr("q_proj.lora_A.weight of adapter " + dir_ +
                        " has values that are not finite"));
}

TEST_F(AdapterTest, AdoptAdapter_WhatTheJobStates_MustBeTheSame) {
  Write();
  const auto adapter = *OpenAdapter(dir_);
  JobSpec::Lora lora;
  lora.rank = 2;
  lora.alpha = 4;
  lora.target_modules = {"q_proj", "down_proj"};
  EXPECT_TRUE(AdoptAdapter(adapter, model_, lora).ok());
  const auto message = [&](const JobSpec::Lora& stated) {
    JobSpec::Lora copy = stated;
    return std::string(AdoptAdapter(adapter, model_, copy).message());
  };
  JobSpec::Lora other = lora;
  other.alpha = 8;
  EXPECT_THAT(message(other),
              HasSubstr("has lora.alpha 4, the job file says 8"));
  other = lora;
  other.rank = 3;
  EXPECT_THAT(message(other),
              HasSubstr("has lora.rank 2, the job file says 3"));
  other = lora;
  other.use_rslora = true;
  EXPECT_THAT(message(other), HasSubstr("has lora.use_rslora false"));
  other = lora;
  other.target_modules = {};
  EXPECT_THAT(message(other), HasSubstr("the job file says all-linear"));
}

TEST_F(AdapterTest, AdoptAdapter_WhatTheJobLeavesOut_IsTheAdapters) {
  Write();
  const auto adapter = *OpenAdapter(dir_);
  JobSpec::Lora lora;
  lora.from_adapter = {"lora.rank", "lora.alpha", "lora.target_modules",
                       "lora.use_rslora"};
  lora.dropout = 0.5;
  ASSERT_TRUE(AdoptAdapter(adapter, model_, lora).ok());
  EXPECT_EQ(lora.rank, 2);
  EXPECT_EQ(lora.alpha, 4);
  EXPECT_EQ(lora.dropout, 0.5);
  EXPECT_TRUE(lora.from_adapter.empty());
  EXPECT_EQ(*MatchTargetModules(model_, lora.target_modules), modules_);
}

class JobOutputTest : public AdapterTest {
 protected:
  JobOutputTest() {
    spec_ = ParseJobFile(
                "name: bot\nmodel: 'odd: name'\n"
                "data: {train: [{path: a.jsonl, format: chat}]}\n"
                "lora: {rank: 2, alpha: 4}\n")
                .spec;
    metrics_ = dir_ + "/m";
    std::ofstream(metrics_) << "{\"step\":1}\n";
    output_.job_id = "j-1";
    output_.spec = &spec_;
    output_.model = &model_;
    output_.modules = modules_;
    output_.layout = &layout_;
    output_.params = params_;
    output_.metrics_path = metrics_;
    output_.eval = {1.25, 100, "eval", "bfloat16"};
    output_.records = "9 read, 2 bad (skipped)";
    output_.steps = 4;
    output_.final_loss = 1.5;
  }
  JobSpec spec_;
  std::string metrics_;
  JobOutput output_;
};

TEST_F(JobOutputTest, Write_Adapter_IsCompleteAndVerifies) {
  const std::string out = dir_ + "/x/out";
  for (int i = 0; i < 2; ++i) {  // the second replaces the first
    const absl::Status status = WriteJobOutput(out, output_);
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_THAT(
      *ListFilesRecursively(dir_ + "/x"),
      ElementsAre("out/README.md", "out/SHA256SUMS", "out/adapter_config.json",
                  "out/adapter_model.safetensors", "out/eval.json",
                  "out/job.yaml", "out/metrics.jsonl"));
  EXPECT_TRUE(VerifyChecksums(out).ok());
  const auto eval = ReadEvalRecord(out);
  ASSERT_TRUE(eval.ok()) << eval.status();
  EXPECT_EQ(eval->loss, 1.25);
  EXPECT_EQ(eval->data, "eval");
  EXPECT_EQ(eval->compute_dtype, "bfloat16");
  EXPECT_TRUE(ParseJobFile(*ReadFile(out + "/job.yaml")).errors.empty());
  const std::string card = *ReadFile(out + "/README.md");
  EXPECT_THAT(card, HasSubstr("base_model: \"odd: name\"\nlibrary_name: peft"));
  EXPECT_THAT(card, HasSubstr("| records | 9 read, 2 bad (skipped) |\n"));

  std::ofstream(out + "/eval.json") << "{}";
  EXPECT_THAT(VerifyChecksums(out).message(), HasSubstr("eval.json"));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadEvalRecord(out).status()));
  std::ofstream(out + "/eval.json")
      << R"({"loss": 1, "tokens": 2, "data": "eval", "compute_dtype": "int8"})";
  EXPECT_THAT(ReadEvalRecord(out).status().message(),
              HasSubstr("compute_dtype must be float32 or bfloat16"));
  fs::remove(out + "/eval.json");
  EXPECT_TRUE(absl::IsDataLoss(VerifyChecksums(out)));
  std::ofstream(out + "/SHA256SUMS") << "short\n";
  EXPECT_TRUE(absl::IsDataLoss(VerifyChecksums(out)));
  fs::resize_file(out + "/SHA256SUMS", 0);
  EXPECT_TRUE(absl::IsDataLoss(VerifyChecksums(out)));
}

TEST_F(JobOutputTest, Write_FullModel_OpensAsAModel) {
  SKIP_WITHOUT_SHARED_DATA();
  const std::string base = SharedData() + "/models/stories260K";
  const auto reader = *SafetensorsReader::OpenModel(base);
  const auto model = *ReadModelDescription(base);
  TrainableLayout layout;
  for (const TensorInfo& info : reader->tensors()) {
    layout.tensors.push_back(
        {info.name, info.shape, layout.total, info.num_elements()});
    layout.total += info.num_elements();
  }
  std::vector<float> params(layout.total);
  for (const TrainableTensor& tensor : layout.tensors) {
    ASSERT_TRUE(reader
                    ->ReadFloat32(tensor.name, std::span(params).subspan(
                                                   tensor.offset, tensor.size))
                    .ok());
  }
  spec_.method = Method::kFull;
  output_.model = &model;
  output_.base_directory = base;
  output_.layout = &layout;
  output_.params = params;
  output_.modules = {};
  const std::string out = dir_ + "/out";
  const absl::Status status = WriteJobOutput(out, output_);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(VerifyChecksums(out).ok());
  EXPECT_EQ(*ReadFile(out + "/tokenizer.json"),
            *ReadFile(base + "/tokenizer.json"));
  const auto again = ReadModelDescription(out);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ParameterCount(*again), ParameterCount(model));
  EXPECT_EQ((*SafetensorsReader::OpenModel(out))->tensors().size(),
            layout.tensors.size());
}

TEST_F(JobOutputTest, Write_Fails_LeavesNothing) {
  output_.metrics_path = dir_ + "/absent";
  EXPECT_TRUE(absl::IsNotFound(WriteJobOutput(dir_ + "/y/out", output_)));
  EXPECT_TRUE(fs::is_empty(dir_ + "/y"));
}

}  // namespace
}  // namespace qlora::trainer
