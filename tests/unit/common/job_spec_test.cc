#include "common/spec/job_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "common/base/files.h"
#include "common/spec/job_keys.h"

namespace qlora {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kMinimal[] =
    "apiVersion: qlora/v1\n"
    "name: bot\n"
    "model: {base: tiny}\n"
    "data: {train: [{path: a.jsonl, format: chat}]}\n";

std::string Messages(const std::string& yaml) {
  return std::string(
      SpecErrorsToStatus(ParseJobFile(yaml).errors, "job.yaml").message());
}

std::string With(const std::string& more) { return kMinimal + more; }

TEST(JobSpecTest, Parse_Minimal_HasDefaults) {
  const ParsedJob job = ParseJobFile(kMinimal);
  ASSERT_EQ(Messages(kMinimal), "");
  EXPECT_EQ(job.spec.name, "bot");
  EXPECT_EQ(job.spec.method, Method::kQlora);
  EXPECT_EQ(job.spec.train.learning_rate, 2e-4);
  EXPECT_EQ(job.spec.data.train[0].format, DataFormat::kChat);
  EXPECT_EQ(job.spec.logging.every.steps, 1);
  EXPECT_TRUE(job.spec.checkpoint.every.never());
}

TEST(JobSpecTest, Parse_EveryKey_SetsItsField) {
  const std::string yaml = R"(
apiVersion: qlora/v1
name: support-bot
project: team-a
labels: {team: support, tier: "1"}
model: {base: /models/qwen, init: pretrained}
method: qlora
quantization: {type: nf4, double_quant: false, block_size: 128}
lora: {rank: 8, alpha: 16.5, dropout: 0.05, target_modules: [q_proj, v_proj],
       use_rslora: true, init_adapter: ./start}
data:
  train: [{path: support.jsonl, format: chat}, notes.txt]
  eval: {path: "dataset:held-out", format: tokens}
  max_seq_len: 512
  packing: false
  shuffle: false
  loss_on: last
  chat_template: chat.jinja
  on_bad_record: skip
  on_too_long: split
train: {epochs: 3, max_steps: 400, global_batch_size: 32, micro_batch_size: 4,
        learning_rate: 2e-4, lr_scheduler: cosine, warmup_steps: 20,
        optimizer: adamw, adam_beta1: 0.8, adam_beta2: 0.99, adam_epsilon: 1e-6,
        weight_decay: 0.1, max_grad_norm: 0.5, activation_memory: recompute,
        seed: 7, compute_dtype: float32, deterministic: true}
eval: {every: 0.5 epochs}
logging: {every: 10}
checkpoint: {every: "30m", keep: 2}
resources: {nodes: 2, devices_per_node: 4, device: cpu,
            min_device_memory: 40GiB}
priority: 70
restart: {max: 1}
deadline: 2h30m
output: {name: best, formats: [peft]}
)";
  ASSERT_EQ(Messages(yaml), "");
  const JobSpec s = ParseJobFile(yaml).spec;
  EXPECT_EQ(s.labels.at("tier"), "1");
  EXPECT_EQ(s.quantization.block_size, 128);
  EXPECT_FALSE(s.quantization.double_quant);
  EXPECT_EQ(s.lora.alpha, 16.5);
  EXPECT_THAT(s.lora.target_modules, ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(s.data.train[1].format, DataFormat::kText);
  EXPECT_EQ(s.data.eval[0].path, "dataset:held-out");
  EXPECT_EQ(s.data.on_too_long, OnTooLong::kSplit);
  EXPECT_EQ(s.train.lr_scheduler, LrScheduler::kCosine);
  EXPECT_EQ(s.train.adam_epsilon, 1e-6);
  EXPECT_EQ(s.train.compute_dtype, ComputeDtype::kFloat32);
  EXPECT_EQ(s.eval.every.epochs, 0.5);
  EXPECT_EQ(s.logging.every.steps, 10);
  EXPECT_EQ(s.checkpoint.every.time, absl::Minutes(30));
  EXPECT_EQ(s.checkpoint.every.steps, 0);
  EXPECT_EQ(s.world_size(), 8);
  EXPECT_EQ(s.resources.min_device_memory, int64_t{40} << 30);
  EXPECT_EQ(s.deadline, absl::Minutes(150));
  EXPECT_THAT(NamedPaths(s), ElementsAre("support.jsonl", "notes.txt",
                                         "./start", "chat.jinja"));

  // Every key differs from its default, so the way back is tested for each.
  for (const JobKey& key : JobKeys()) {
    const auto value = GetJobKey(key, s);
    EXPECT_TRUE(value.has_value() || key.path == "data.eval_fraction")
        << key.path;
  }
  const std::string resolved = ResolvedJobFile(s);
  ASSERT_EQ(Messages(resolved), "") << resolved;
  EXPECT_EQ(ResolvedJobFile(ParseJobFile(resolved).spec), resolved);
}

TEST(JobSpecTest, Resolved_EachMethod_ParsesBack) {
  for (const char* method : {"qlora", "lora", "full"}) {
    const std::string yaml = With(std::string("method: ") + method + "\n");
    ASSERT_EQ(Messages(yaml), "");
    const std::string resolved = ResolvedJobFile(ParseJobFile(yaml).spec);
    EXPECT_EQ(Messages(resolved), "") << resolved;
    EXPECT_EQ(ResolvedJobFile(ParseJobFile(resolved).spec), resolved);
  }
  const std::string odd =
      With(
          "labels: {a: 'true', b: \"x: y\\n\", 'c d': '7'}\n"
          "eval: {every: 0.1 epochs}\n")
          .replace(0, 0, "");
  const JobSpec spec = ParseJobFile(odd + "train: {learning_rate: 0.1}\n").spec;
  const JobSpec back = ParseJobFile(ResolvedJobFile(spec)).spec;
  EXPECT_EQ(back.labels, spec.labels);
  EXPECT_EQ(back.train.learning_rate, 0.1);
  EXPECT_EQ(back.eval.every.epochs, 0.1);
}

TEST(JobSpecTest, InitAdapter_SaysWhatTheFileDoesNotState) {
  const JobSpec spec =
      ParseJobFile(With("lora: {init_adapter: ./start, alpha: 8}\n")).spec;
  EXPECT_THAT(
      spec.lora.from_adapter,
      ElementsAre("lora.rank", "lora.target_modules", "lora.use_rslora"));
  const std::string resolved = ResolvedJobFile(spec);
  EXPECT_EQ(ParseJobFile(resolved).spec.lora.from_adapter,
            spec.lora.from_adapter);
  EXPECT_THAT(resolved, Not(HasSubstr("rank:")));
  EXPECT_TRUE(
      ParseJobFile(With("lora: {rank: 4}\n")).spec.lora.from_adapter.empty());
}

TEST(JobSpecTest, Parse_Shorthands_Work) {
  const std::string shortest =
      "apiVersion: qlora/v1\nname: x\nmodel: tiny\ndata: {train: a.txt}\n";
  const JobSpec spec = ParseJobFile(shortest).spec;
  EXPECT_EQ(spec.model.base, "tiny");
  EXPECT_EQ(spec.data.train[0].path, "a.txt");
  EXPECT_EQ(spec.data.train[0].format, DataFormat::kText);
  EXPECT_EQ(Messages(shortest), "");
  EXPECT_EQ(Messages(With("lora: {target_modules: all-linear}\n")), "");
  EXPECT_EQ(Messages(With("lora: {target_modules: q_proj}\n")), "");
  EXPECT_EQ(Messages(With("train:\n")), "");
}

TEST(JobSpecTest, Parse_UnknownKey_SuggestsWhatWasMeant) {
  EXPECT_EQ(Messages(With("train: {epoch: 3}\n")),
            "job.yaml:5:9: train.epoch: unknown key; did you mean "
            "'train.epochs'?");
  EXPECT_THAT(Messages(With("train: {num_train_epochs: 3}\n")),
              HasSubstr("did you mean 'train.epochs'"));
  EXPECT_THAT(Messages(With("lora: {r: 3}\n")),
              HasSubstr("did you mean 'lora.rank'"));
  EXPECT_THAT(Messages(With("train: {gradient_accumulation_steps: 8}\n")),
              HasSubstr("did you mean 'train.global_batch_size'"));
  EXPECT_THAT(Messages(With("train: {fp16: true}\n")),
              HasSubstr("did you mean 'train.compute_dtype'"));
  EXPECT_THAT(Messages(With("train: {rank: 3}\n")),
              HasSubstr("did you mean 'lora.rank'"));
  EXPECT_THAT(Messages(With("tarin: {epochs: 3}\n")),
              HasSubstr("did you mean 'train'"));
  EXPECT_THAT(Messages(With("learning_rate: 3\n")),
              HasSubstr("did you mean 'train.learning_rate'"));
  EXPECT_THAT(Messages(With("early_stopping: {patience: 3}\n")),
              HasSubstr("early_stopping: unknown key"));
  EXPECT_THAT(Messages(With("xyzzy: 3\n")),
              HasSubstr("'qloractl explain' lists all keys"));
  EXPECT_THAT(Messages(With("<<: {a: b}\n")), HasSubstr("unknown key"));
}

TEST(JobSpecTest, Parse_WrongValues_SayWhatIsAllowed) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"lora: {rank: 0}",
       "5:14: lora.rank: must be an integer from 1 to 4096, "
       "not '0'"},
      {"lora: {rank: '16'}", "not the string \"16\""},
      {"lora: {rank: 1.5}", "lora.rank: must be an integer"},
      {"lora: {rank: 99999999999999999999}", "lora.rank"},
      {"lora: {rank: [1]}", "not a list"},
      {"lora: {rank:}", "lora.rank: has no value"},
      {"lora: {dropout: 1}", "a number of at least 0 and below 1, not '1'"},
      {"lora: {alpha: 0}", "a number above 0"},
      {"lora: {alpha: nan}", "lora.alpha"},
      {"lora: {alpha: 1e999}", "lora.alpha"},
      {"lora: {target_modules: []}", "all-linear or a list of strings"},
      {"lora: {target_modules: [[q]]}", "lora.target_modules"},
      {"train: {deterministic: yes}", "must be true or false, not 'yes'"},
      {"train: {lr_scheduler: cosin}", "one of constant, linear, cosine"},
      {"train: {optimizer: sgd}", "must be adamw, not 'sgd'"},
      {"train: {seed: -1}", "train.seed"},
      {"train: {learning_rate: fast}", "train.learning_rate: must be a number"},
      {"train: 7", "train: must be a map of keys"},
      {"eval: {every: soon}", "a period"},
      {"eval: {every: -5}", "a period"},
      {"eval: {every: 5 parsecs}", "a period"},
      {"logging: {every: never}", "a period"},
      {"checkpoint: {every: -1h}", "a period"},
      {"deadline: 5", "a length of time"},
      {"resources: {min_device_memory: 1e30GiB}", "bytes"},
      {"resources: {min_device_memory: 4XB}", "bytes"},
      {"resources: {nodes: 2000000000, devices_per_node: 2000000000}",
       "resources.nodes: must be an integer from 1 to 1024"},
      {"labels: {a: [1]}", "labels.a: must be a string"},
      {"labels: x", "a map of strings"},
      {"output: {formats: [gguf]}", "a list of peft"},
      {"project: '../x'", "project: must begin with a letter"},
      {"apiVersion: qlora/v2", "'apiVersion' appears twice"},
      {"quantization: {block_size: 96}", "power of two, not 96"},
  };
  for (const auto& [line, message] : cases) {
    EXPECT_THAT(Messages(With(line + "\n")), HasSubstr(message)) << line;
  }
  EXPECT_THAT(Messages("apiVersion: v9\n"),
              AllOf(HasSubstr("apiVersion: must be qlora/v1"),
                    HasSubstr("name: is required"),
                    HasSubstr("model.base: is required"),
                    HasSubstr("data.train: is required")));
  EXPECT_EQ(Messages(std::string(kMinimal).substr(
                std::string("apiVersion: qlora/v1\n").size())),
            "job.yaml: apiVersion: is required: begin the file with "
            "'apiVersion: qlora/v1'");
  EXPECT_THAT(Messages("- a\n"), HasSubstr("a job file is a map of keys"));
  EXPECT_THAT(Messages(""), HasSubstr("a job file is a map of keys"));
  EXPECT_THAT(Messages("a: [\n"), HasSubstr("job.yaml:"));
}

TEST(JobSpecTest, Parse_BadSources_NameTheItem) {
  const auto messages = [](const std::string& train) {
    return Messages("name: x\nmodel: m\ndata:\n  train: " + train + "\n");
  };
  EXPECT_THAT(messages("a.jsonl"),
              HasSubstr("data.train.format: is required: one of chat"));
  EXPECT_THAT(messages("[{path: a, format: chat}, {path: b, format: caht}]"),
              HasSubstr("4:54: data.train[1].format: must be one of chat"));
  EXPECT_THAT(messages("[{format: chat}]"), HasSubstr("data.train[0].path"));
  EXPECT_THAT(messages("[{path: a, format: chat, x: 1}]"),
              HasSubstr("data.train[0].x: unknown key"));
  EXPECT_THAT(messages("[]"), HasSubstr("data.train: must be a list"));
  EXPECT_THAT(messages("\"a\\nb.txt\""), HasSubstr("control characters"));
}

TEST(JobSpecTest, Parse_ImpossibleCombinations_AreRefused) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"method: full\nlora: {rank: 8}", "6:8: lora.rank: means nothing with"},
      {"method: full\nquantization: {double_quant: true}",
       "quantization.double_quant: means nothing"},
      {"method: lora\nquantization: {type: nf4}",
       "quantization.type: means nothing with method lora"},
      {"method: full\noutput: {formats: [peft]}", "output.formats"},
      {"train: {warmup_ratio: 0.1, warmup_steps: 5}", "give one of them"},
      {"train: {micro_batch_size: 16, global_batch_size: 8}",
       "train.micro_batch_size: is 16, more than"},
      {"train: {max_steps: 5, warmup_steps: 6}", "more than train.max_steps"},
      {"eval: {every: 5}", "eval.every: needs an evaluation set"},
  };
  for (const auto& [line, message] : cases) {
    EXPECT_THAT(Messages(With(line + "\n")), HasSubstr(message)) << line;
  }
  const std::string data = "data: {train: a.txt, eval: b.txt, ";
  const std::string head =
      "apiVersion: qlora/v1\nname: x\nmodel: {base: m, init: random}\n";
  EXPECT_THAT(Messages(head + data + "eval_fraction: 0.1}\n"),
              AllOf(HasSubstr("data.eval_fraction: cannot stand beside"),
                    HasSubstr("model.init: random needs method full")));
  EXPECT_THAT(Messages(head + "method: full\n" + data + "chat_template: x}\n"),
              HasSubstr("needs data of format chat"));
  EXPECT_EQ(Messages(head + "method: full\n" + data + "}\n"), "");
}

TEST(JobSpecTest, ApplyOverrides_SetsAndKeeps) {
  const auto applied = ApplyOverrides(
      With("train: {epochs: 3}\n"),
      {"train.epochs=5", "lora.target_modules=[q_proj, v_proj]",
       "data.train.0.path=b.jsonl", "data.train[1]={path: c.txt}",
       "model.base=/x y", "eval.every=never"});
  ASSERT_TRUE(applied.ok()) << applied.status();
  ASSERT_EQ(Messages(*applied), "");
  const JobSpec spec = ParseJobFile(*applied).spec;
  EXPECT_EQ(spec.train.epochs, 5);
  EXPECT_THAT(spec.lora.target_modules, ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(spec.data.train[0].path, "b.jsonl");
  EXPECT_EQ(spec.data.train[0].format, DataFormat::kChat);
  EXPECT_EQ(spec.data.train[1].path, "c.txt");
  EXPECT_EQ(spec.model.base, "/x y");
  EXPECT_EQ(spec.name, "bot");

  const auto shorthand = ApplyOverrides("model: tiny\n", {"model.init=random"});
  ASSERT_TRUE(shorthand.ok());
  EXPECT_EQ(*shorthand, "model:\n  base: tiny\n  init: random\n");

  for (const char* bad : {"", "=3", "train", "name.x=1", "data.train.7.path=x",
                          "a..b=1", "a=[", "data.train.x=1"}) {
    EXPECT_FALSE(ApplyOverrides(kMinimal, {bad}).ok()) << bad;
  }
  EXPECT_EQ(ApplyOverrides(kMinimal, {"train"}).status().message(),
            "--set train: give KEY=VALUE, as train.epochs=3");
  // An unknown key is the parser's to refuse, which also suggests.
  EXPECT_THAT(Messages(*ApplyOverrides(kMinimal, {"train.epoch=3"})),
              HasSubstr("did you mean 'train.epochs'"));
}

std::string MessagesWith(const std::string& yaml,
                         const std::vector<std::string>& assignments) {
  return std::string(
      SpecErrorsToStatus(ParseJobFile(yaml, assignments).errors, "job.yaml")
          .message());
}

TEST(JobSpecTest, ParseWithAssignments_ErrorsNameTheFlagOrTheFilesOwnLine) {
  // The value of a flag, whether the file has the key or not.
  EXPECT_THAT(MessagesWith(With("train: {epochs: 3}\n"), {"train.epochs=many"}),
              StartsWith("--set train.epochs=many: train.epochs: "));
  EXPECT_THAT(MessagesWith(kMinimal, {"lora.rank=4", "lora.rnk=8"}),
              StartsWith("--set lora.rnk=8: lora.rnk: unknown key"));
  EXPECT_THAT(MessagesWith(kMinimal, {"lora={rank: four}"}),
              StartsWith("--set lora={rank: four}: lora.rank: "));
  EXPECT_THAT(MessagesWith(kMinimal, {"data.train.0.format=cat"}),
              StartsWith("--set data.train.0.format=cat: data.train[0]"));
  EXPECT_THAT(MessagesWith(kMinimal, {"model.init=random"}),
              StartsWith("--set model.init=random: model.init: "));
  EXPECT_THAT(MessagesWith(kMinimal, {"a=["}), StartsWith("--set a=[: "));
  // What stands in the file keeps its line and column, blank lines and comments
  // included.
  EXPECT_THAT(
      MessagesWith(With("# a comment\n\nlora: {rnk: 4}\n"), {"train.epochs=5"}),
      StartsWith("job.yaml:7:8: lora.rnk: unknown key"));
  EXPECT_THAT(MessagesWith("name: a\nmodel: tiny\n", {"model.init=pretrained"}),
              Not(HasSubstr("--set")));
  EXPECT_EQ(MessagesWith(kMinimal, {"train.epochs=5"}), "");
  EXPECT_EQ(ParseJobFile(kMinimal, {"train.epochs=5"}).spec.train.epochs, 5);
}

TEST(JobSpecTest, NamedPaths_SkipsWhatTheServerHas) {
  JobSpec spec;
  spec.data.train = {{"a"}, {"dataset:b"}, {"a"}};
  spec.lora.init_adapter = "adapter:x";
  spec.data.chat_template = "{{ messages }}";
  EXPECT_THAT(NamedPaths(spec), ElementsAre("a"));
}

TEST(JobKeysTest, Explain_KeySectionAndTypo) {
  const auto one = ExplainJobKey("train.learning_rate");
  ASSERT_TRUE(one.ok());
  EXPECT_THAT(*one, AllOf(HasSubstr("type:     a number of at least 0"),
                          HasSubstr("default:  2e-04")));
  EXPECT_THAT(*ExplainJobKey("lora.alpha"),
              HasSubstr("a number above 0 and at most 1e+06"));
  EXPECT_THAT(*ExplainJobKey("lora"), HasSubstr("lora.rank"));
  EXPECT_THAT(*ExplainJobKey(""), HasSubstr("deadline"));
  const auto typo = ExplainJobKey("train.epoch");
  EXPECT_TRUE(absl::IsNotFound(typo.status()));
  EXPECT_THAT(typo.status().message(), HasSubstr("'train.epochs'"));
}

// QLORA_UPDATE_GOLDEN=1 writes the pages.
TEST(JobKeysTest, Documentation_IsUpToDate) {
  const std::vector<std::pair<std::string, std::string>> pages = {
      {QLORA_SOURCE_DIR "/docs/job-file.md", JobFileMarkdown()},
      {QLORA_SOURCE_DIR "/docs/job-file.schema.json", JobFileJsonSchema()}};
  for (const auto& [path, want] : pages) {
    if (std::getenv("QLORA_UPDATE_GOLDEN") != nullptr) {
      ASSERT_TRUE(WriteFileAtomically(path, want).ok());
    }
    const auto have = ReadFile(path);
    ASSERT_TRUE(have.ok()) << have.status();
    EXPECT_TRUE(*have == want)
        << path << " is old: run job_spec_test with QLORA_UPDATE_GOLDEN=1";
  }
  const auto schema = nlohmann::json::parse(JobFileJsonSchema());
  EXPECT_EQ(schema["properties"]["lora"]["properties"]["rank"]["minimum"], 1);
}

}  // namespace
}  // namespace qlora
