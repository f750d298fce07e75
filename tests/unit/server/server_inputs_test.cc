// What a job names: models, data sets and other files that the coordinator
// checks before a worker sees the job.
#include "server_harness.h"

namespace qlora::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// A safetensors file with the tensors that kModelConfig asks for.
std::string Weights(int64_t vocab) {
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
  };
  std::vector<Tensor> tensors = {{"model.embed_tokens.weight", {vocab, 16}},
                                 {"lm_head.weight", {vocab, 16}},
                                 {"model.norm.weight", {16}}};
  const std::string block = "model.layers.0.";
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
    tensors.push_back({block + norm + ".weight", {16}});
  }
  for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
    tensors.push_back({block + "self_attn." + name + ".weight", {16, 16}});
  }
  tensors.push_back({block + "mlp.gate_proj.weight", {32, 16}});
  tensors.push_back({block + "mlp.up_proj.weight", {32, 16}});
  tensors.push_back({block + "mlp.down_proj.weight", {16, 32}});
  const std::vector<uint8_t> zeros(static_cast<size_t>(vocab) * 16 * 4 + 4096);
  std::vector<TensorToWrite> all;
  for (const Tensor& t : tensors) {
    int64_t elements = 1;
    for (const int64_t d : t.shape) elements *= d;
    all.push_back({t.name, TensorDtype::kF32, t.shape,
                   std::span(zeros).first(static_cast<size_t>(elements) * 4)});
  }
  const TempDir dir;
  EXPECT_TRUE(WriteSafetensors(dir.path() + "/w", all, {}).ok());
  return ReadFile(dir.path() + "/w").value();
}

TEST_F(ServerTest, UploadedModel_IsCheckedBeforeAnyNodeSeesIt) {
  const v1::ArtifactFile config = Upload("config.json", kModelConfig);
  const v1::ArtifactFile weights = Upload("model.safetensors", Weights(64));
  const auto refused = [&](const std::vector<v1::ArtifactFile>& files,
                           const std::string& why) {
    const grpc::Status status = Import(files);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << why;
    EXPECT_THAT(status.error_message(), HasSubstr(why));
    EXPECT_THAT(status.error_message(), Not(HasSubstr(dir_.path())));
  };
  refused({weights}, "the model has no config.json");
  refused({config}, "the model has no model.safetensors");
  refused({Upload("config.json", R"({"architectures": ["GPT2LMHeadModel"]})"),
           weights},
          "supported are LlamaForCausalLM");
  refused({config, Upload("model.safetensors", "01234567garbage")},
          "model.safetensors: ");
  refused({config, Upload("model.safetensors", Weights(32))},
          "tensor model.embed_tokens.weight has shape [32, 16]; config.json "
          "asks for [64, 16]");
  refused({config, weights,
           Upload("model.safetensors.index.json",
                  R"({"weight_map": {"a": "model-1.safetensors"}})")},
          "the model has no model-1.safetensors, which its index names");
  refused({config, weights,
           Upload("tokenizer.json", R"({"model": {"vocab": {"<a>": 64}}})")},
          "tokenizer.json: its vocabulary goes up to id 64 (\"<a>\"), but "
          "vocab_size in config.json is 64");
  EXPECT_TRUE(Import({config, weights}).ok());

  v1::CreateJobRequest request = Request("r1");
  request.set_job_file(
      "apiVersion: qlora/v1\nname: test\nmethod: lora\nmodel: m\n"
      "data: {train: [{path: rows.jsonl, format: text}]}\n");
  v1::Job job;
  EXPECT_THAT(Create(request, &job).error_message(),
              HasSubstr("model.base: m has no tokenizer.json"));
  request.set_job_file(
      "apiVersion: qlora/v1\nname: test\nmethod: lora\nmodel: m\n"
      "data: {train: [{path: rows.jsonl, format: tokens}]}\n");
  EXPECT_TRUE(Create(request, &job).ok());
}

TEST_F(ServerTest, ChatDataWithoutATemplate_IsRefusedAtOnce) {
  const v1::ArtifactFile tokenizer =
      Upload("tokenizer.json", R"({"model": {"vocab": {"<a>": 0}}})");
  const v1::ArtifactFile config = Upload("config.json", kModelConfig);
  const v1::ArtifactFile weights = Upload("model.safetensors", Weights(64));
  const auto create = [&](const std::vector<v1::ArtifactFile>& more,
                          const std::string& chat_template) {
    std::vector<v1::ArtifactFile> files = {config, weights, tokenizer};
    files.insert(files.end(), more.begin(), more.end());
    static int count = 0;
    const std::string name = "m" + std::to_string(++count);
    EXPECT_TRUE(Import(files, name).ok());
    v1::CreateJobRequest request = Request("chat-" + name);
    request.set_job_file(
        "apiVersion: qlora/v1\nname: test\nmethod: lora\nmodel: " + name +
        "\ndata: {train: [{path: rows.jsonl, format: chat}]" + chat_template +
        "}\n");
    v1::Job job;
    return Create(request, &job);
  };
  for (const std::vector<v1::ArtifactFile>& without :
       {std::vector<v1::ArtifactFile>{},
        {Upload("tokenizer_config.json", R"({"chat_template": ""})")}}) {
    const grpc::Status status = create(without, "");
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(),
                HasSubstr("data.chat_template: is needed: data.train[0] "
                          "(rows.jsonl) has format chat, but m"));
  }
  EXPECT_TRUE(create({}, ", chat_template: '{{ messages }}'").ok());
  EXPECT_TRUE(
      create({Upload("chat_template.jinja", "{{ messages }}")}, "").ok());
  EXPECT_TRUE(create({Upload("tokenizer_config.json",
                             R"({"chat_template": "{{ messages }}"})")},
                     "")
                  .ok());
}

TEST_F(ServerTest, BadJobFile_NamesEachPlaceInTheDetails) {
  v1::Job job;
  const grpc::Status status = Create(Request("r1", "lerning_rate: 1\n"), &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("lerning_rate"));
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  google::rpc::BadRequest bad;
  ASSERT_TRUE(bad.ParseFromString(details.details(0).value()));
  EXPECT_EQ(bad.field_violations(0).field(), "lerning_rate");
}

TEST_F(ServerTest, WhatTheJobNames_MustBeThere) {
  v1::Job job;
  v1::CreateJobRequest request = Request("r1");
  request.clear_inputs();
  EXPECT_THAT(Create(request, &job).error_message(),
              HasSubstr("data.train[0].path: rows.jsonl was not uploaded"));
  request = Request("r2");
  request.mutable_inputs(0)->mutable_files(0)->set_sha256(Sha256Hex("?"));
  EXPECT_EQ(Create(request, &job).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  ASSERT_TRUE(RemoveRecursively(ModelDir()).ok());
  request = Request("r3");
  EXPECT_THAT(Create(request, &job).error_message(),
              HasSubstr("no such directory"));
  request.set_job_file(
      "apiVersion: qlora/v1\nname: x\nmethod: lora\n"
      "model: {base: nobody}\n"
      "data: {train: [{path: rows.jsonl, format: text}]}\n");
  EXPECT_THAT(Create(request, &job).error_message(),
              AllOf(HasSubstr("model.base: no model \"nobody\" is registered"),
                    HasSubstr("`qloractl model import DIR --name nobody`"),
                    HasSubstr("(" + dir_.path() + "/models)")));
}

TEST_F(ServerTest, NamesThatMeanNothing_AreToldThoseThatDo) {
  v1::PutDatasetRequest put;
  *put.mutable_file() = Upload("a.jsonl", "{\"input_ids\": [5]}\n");
  v1::Dataset dataset;
  for (const char* name : {"other", "support-v2", "apples"}) {
    put.set_request_id(name);
    put.set_name(name);
    ASSERT_TRUE(datasets_->PutDataset(Deadline().get(), put, &dataset).ok());
  }
  v1::CreateJobRequest request = Request("r1");
  std::string text = request.job_file();
  text.replace(text.find("rows.jsonl"), 10, "\"dataset:support\"");
  request.set_job_file(text);
  v1::Job job;
  EXPECT_EQ(Create(request, &job).error_message(),
            "data.train[0].path: no dataset \"support\" is registered; there "
            "are support-v2, apples, other; `qloractl dataset push FILE --name "
            "support` adds it");
  // A directory's name where its path is meant.
  request = Request("r2");
  text = request.job_file();
  text.replace(text.find(ModelDir()), ModelDir().size(), "tiny");
  request.set_job_file(text);
  EXPECT_THAT(Create(request, &job).error_message(),
              HasSubstr("name its directory: " + ModelDir()));
}

TEST_F(ServerTest, GangThatNoNodeCanHold_IsInvalid) {
  FakeWorker worker(server_->grpc_address(), "n1", 2);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  v1::Job job;
  const grpc::Status status =
      Create(Request("r1", "resources: {nodes: 2}\n"), &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(
      status.error_message(),
      AllOf(HasSubstr("resources: the registered nodes can never"),
            HasSubstr("needs 2 nodes"), HasSubstr("n1 has 2 cpu devices")));
}

TEST_F(ServerTest, InitAdapter_IsReadWhereItCanBeSeen) {
  const auto request = [&](const std::string& id, const std::string& config) {
    v1::CreateJobRequest request = Request(id);
    request.set_job_file(
        "apiVersion: qlora/v1\nname: x\nmethod: lora\nmodel: m\n"
        "lora: {init_adapter: adapter}\n"
        "data: {train: [{path: rows.jsonl, format: tokens}]}\n");
    auto& input = *request.add_inputs();
    input.set_path("adapter");
    *input.add_files() =
        Upload(config.empty() ? "x" : "adapter_config.json", config);
    return request;
  };
  const grpc::Status imported =
      Import({Upload("config.json", kModelConfig),
              Upload("model.safetensors", Weights(64))});
  ASSERT_TRUE(imported.ok()) << imported.error_message();
  v1::Job job;
  EXPECT_THAT(Create(request("r1", ""), &job).error_message(),
              HasSubstr("lora.init_adapter: adapter: has no adapter_config"));
  EXPECT_THAT(Create(request("r2", "{\"r\": -1}"), &job).error_message(),
              HasSubstr("lora.init_adapter: adapter: adapter_config.json: r"));
  const grpc::Status status = Create(request("r3", "{\"r\": 4}"), &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(ServerTest, AdapterOfAJob_IsFoundByItsNames) {
  ASSERT_TRUE(Import({Upload("config.json", kModelConfig),
                      Upload("model.safetensors", Weights(64))})
                  .ok());
  const auto request = [&](const std::string& id, const std::string& more) {
    v1::CreateJobRequest request = Request(id);
    request.set_job_file(
        "apiVersion: qlora/v1\nname: bot\nmethod: lora\nmodel: m\n"
        "data: {train: [{path: rows.jsonl, format: tokens}]}\n" +
        more);
    return request;
  };
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.Connect();
  const v1::ArtifactFile config = Upload("adapter_config.json", "{\"r\": 4}");
  const std::string first = RunJob(worker, request("r1", ""));
  FinishJob(worker, first, config);
  const std::string named =
      RunJob(worker, request("r2", "output: {name: best}"));
  FinishJob(worker, named, config);
  v1::Job job;
  const auto go_on = [&](const std::string& name) {
    v1::CreateJobRequest next = request(
        "next-" + name, "lora: {init_adapter: \"adapter:" + name + "\"}");
    next.set_validate_only(true);
    return Create(next, &job);
  };
  for (const std::string& name :
       {std::string("bot"), std::string("best"), first}) {
    const grpc::Status status = go_on(name);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  EXPECT_EQ(go_on("bob").error_message(),
            "lora.init_adapter: no adapter \"bob\" in project default; there "
            "are bot, best; name one by output.name, or a finished lora or "
            "qlora job by id, or a directory beside the job file");
  // It gets its files.
  v1::CreateJobRequest next =
      request("r3", "lora: {init_adapter: \"adapter:bot\"}");
  ASSERT_TRUE(Create(next, &job).ok());
  const auto prepare = worker.AwaitCommand().prepare();
  ASSERT_EQ(prepare.inputs_size(), 2);
  EXPECT_EQ(prepare.inputs(1).path(), "adapter:bot");
  EXPECT_EQ(prepare.inputs(1).files(0).sha256(), config.sha256());
}

TEST_F(ServerTest, DirectoryOutsideTheRoots_IsRefused) {
  v1::ImportModelRequest request;
  request.set_request_id("r1");
  request.set_name("m");
  v1::Model model;
  for (const std::string& directory :
       {std::string("/etc"), ModelDir() + "/../../..", std::string("tiny")}) {
    request.set_directory(directory);
    EXPECT_EQ(
        models_->ImportModel(Deadline().get(), request, &model).error_code(),
        grpc::StatusCode::INVALID_ARGUMENT)
        << directory;
  }
  // Nor by a link inside.
  std::filesystem::create_directory_symlink("/etc",
                                            dir_.path() + "/models/link");
  request.set_directory(dir_.path() + "/models/link");
  EXPECT_THAT(
      models_->ImportModel(Deadline().get(), request, &model).error_message(),
      HasSubstr("model roots"));
  // Past a link ".." leads elsewhere: what the text says is read.
  const std::string outside = dir_.path() + "/outside";
  ASSERT_TRUE(CreateDirectories(outside + "/tiny").ok());
  ASSERT_TRUE(CreateDirectories(outside + "/deep").ok());
  ASSERT_TRUE(WriteFileAtomically(outside + "/tiny/config.json", "{}").ok());
  std::filesystem::create_directory_symlink(outside + "/deep",
                                            dir_.path() + "/models/away");
  request.set_directory(dir_.path() + "/models/away/../tiny");
  EXPECT_THAT(
      models_->ImportModel(Deadline().get(), request, &model).error_message(),
      HasSubstr("safetensors"));
}

TEST_F(ServerTest, Dataset_MeansItsFile) {
  v1::PutDatasetRequest put;
  put.set_request_id("r1");
  put.set_name("d");
  *put.mutable_file() = Upload("a.jsonl", "{\"input_ids\": [5]}\n");
  v1::Dataset dataset;
  ASSERT_TRUE(datasets_->PutDataset(Deadline().get(), put, &dataset).ok());
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  v1::CreateJobRequest request = Request("r2");
  std::string text = request.job_file();
  text.replace(text.find("rows.jsonl"), 10, "\"dataset:d\"");
  request.set_job_file(text);
  request.clear_inputs();
  v1::Job job;
  const grpc::Status status = Create(request, &job);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const auto prepare = worker.AwaitCommand().prepare();
  EXPECT_EQ(prepare.inputs(0).path(), "dataset:d");
  EXPECT_EQ(prepare.inputs(0).files(0).sha256(), put.file().sha256());
  put.set_name("Bad Name");
  put.set_request_id("r3");
  EXPECT_EQ(datasets_->PutDataset(Deadline().get(), put, &dataset).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServerTest, DatasetNameThatIsTaken_MeansOtherContentOnlyWhenAsked) {
  const auto put = [&](const std::string& id, const std::string& content,
                       bool replace, v1::Dataset* dataset) {
    v1::PutDatasetRequest request;
    request.set_request_id(id);
    request.set_name("d");
    request.set_replace(replace);
    *request.mutable_file() = Upload("a.jsonl", content);
    return datasets_->PutDataset(Deadline().get(), request, dataset);
  };
  v1::Dataset first, second;
  ASSERT_TRUE(put("r1", "one", false, &first).ok());
  ASSERT_TRUE(put("r2", "one", false, &second).ok());
  EXPECT_EQ(second.SerializeAsString(), first.SerializeAsString());
  const grpc::Status status = put("r3", "two", false, &second);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(status.error_message(),
              HasSubstr("\"d\" means other content (a.jsonl, 3 B)"));
  ASSERT_TRUE(put("r4", "two", true, &second).ok());
  EXPECT_EQ(second.file().sha256(), Sha256Hex("two"));
}

TEST_F(ServerTest, UploadedModelThatIsBroken_IsNamedAsItsOwnerNamedIt) {
  v1::ImportModelRequest request;
  request.set_request_id("r1");
  request.set_name("m");
  *request.add_files() = Upload("config.json", kModelConfig);
  *request.add_files() =
      Upload("model.safetensors", std::string(8, '\x7f') + "{}");
  v1::Model model;
  const grpc::Status status =
      models_->ImportModel(Deadline().get(), request, &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(),
              ::testing::StartsWith("model.safetensors: "));
  EXPECT_EQ(status.error_message().find(dir_.path()), std::string::npos);
}

}  // namespace
}  // namespace qlora::server
