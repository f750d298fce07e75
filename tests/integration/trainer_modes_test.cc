// The other modes of a rank, and what bad input gets.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/spec/job_spec.h"
#include "common/spec/memory_plan.h"
#include "common/spec/model_description.h"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "tests/integration/trainer_fixture.h"
#include "tests/shared_data.h"

namespace qlora::trainer {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kJob[] = R"(
apiVersion: qlora/v1
name: modes
model: {base: stories260K}
method: qlora
lora: {rank: 4, alpha: 8}
data:
  train: [{path: rows.jsonl, format: tokens}]
  eval_fraction: 0.2
  max_seq_len: 65
train: {max_steps: 12, global_batch_size: 4, learning_rate: 5e-3}
eval: {every: 5}
)";

class ModesTest : public TrainerFixture {
 protected:
  void SetUp() override {
    TrainerFixture::SetUp();
    if (!IsSkipped()) WriteShakespeareRows("rows.jsonl", 40, 65);
  }

  v1::TrainerTask Job(const std::string& from = "", const std::string& to = "",
                      int ranks = 1) {
    std::string job = kJob;
    if (!from.empty()) {
      EXPECT_THAT(job, HasSubstr(from));
      job = absl::StrReplaceAll(job, {{from, to}});
    }
    v1::TrainerTask task = Task(job, ranks);
    AddInput(task, "rows.jsonl");
    return task;
  }

  // Runs a task that must fail as the user's fault; gives the message.
  std::string Refusal(const v1::TrainerTask& task) {
    const Run run = RunTask(task);
    EXPECT_EQ(run.ranks.at(0).exit_code, 10) << run.failure.message();
    EXPECT_EQ(run.failure.failure_class(), v1::FAILURE_CLASS_USER);
    return run.failure.message();
  }

  // The text that a GENERATE task gives for its first prompt.
  std::string Generate(const v1::GenerateRequest& request,
                       const std::string& adapter,
                       const std::string& job_file = "") {
    v1::TrainerTask task = Task(job_file, 1);
    task.set_mode(v1::TRAINER_MODE_GENERATE);
    task.set_adapter_directory(adapter);
    *task.mutable_generate() = request;
    const Run run = RunTask(task);
    EXPECT_TRUE(run.has_result) << run.failure.message();
    std::string text;
    for (const v1::TrainerEvent& event : run.ranks.at(0).events) {
      text += event.generated().text();
    }
    return text;
  }
};

TEST_F(ModesTest, TrainThenEval_GivesTheRecordedLoss) {
  const v1::TrainerTask job = Job("", "", 2);
  const Run trained = RunTask(job);
  ASSERT_TRUE(trained.has_result) << trained.failure.message();
  std::vector<int64_t> evaluated;
  for (const v1::MetricPoint& point : trained.metrics) {
    if (point.has_eval_loss()) evaluated.push_back(point.step());
  }
  EXPECT_EQ(evaluated, (std::vector<int64_t>{5, 10, 12}));
  for (const v1::TrainerEvent& event : trained.ranks[0].events) {
    if (!event.has_running()) continue;
    EXPECT_EQ(event.running().data().records(), 40);
    EXPECT_EQ(event.running().data().rows(), 32);
    EXPECT_EQ(event.running().data().eval_rows(), 8);
  }
  ASSERT_TRUE(trained.staged.back().final());

  v1::TrainerTask eval = job;
  eval.set_mode(v1::TRAINER_MODE_EVAL);
  eval.set_world_size(1);
  eval.set_adapter_directory(trained.staged.back().output_directory());
  const Run measured = RunTask(eval);
  ASSERT_TRUE(measured.has_result) << measured.failure.message();
  for (const v1::TrainerEvent& event : measured.ranks[0].events) {
    if (!event.has_eval()) continue;
    EXPECT_NEAR(event.eval().loss() / event.eval().recorded_loss(), 1, 1e-6);
    EXPECT_EQ(event.eval().recorded_loss(), trained.metrics.back().eval_loss());
    EXPECT_GT(event.eval().base_loss(), event.eval().loss());
    EXPECT_GT(event.eval().tokens(), 0);
  }
}

TEST_F(ModesTest, InitAdapter_GivesWhatTheJobDoesNotState) {
  const std::string adapter =
      SharedData() + "/adapters/stories260K-shakespeare-lora";
  const auto with = [&](const std::string& lora) {
    v1::TrainerTask task = Job("{rank: 4, alpha: 8}", lora);
    v1::LocalInput& input = *task.add_inputs();
    input.set_name("start");
    input.set_path(adapter);
    return task;
  };
  v1::TrainerTask plan = with("{init_adapter: start}");
  plan.set_mode(v1::TRAINER_MODE_PLAN);
  const Run planned = RunTask(plan);
  ASSERT_TRUE(planned.has_result) << planned.failure.message();
  for (const v1::TrainerEvent& event : planned.ranks[0].events) {
    if (!event.has_plan()) continue;
    EXPECT_EQ(event.plan().trainable_parameters(), 5 * 8 * 1156);
  }

  const v1::TrainerTask job = with("{init_adapter: start}");
  const Run trained = RunTask(job);
  ASSERT_TRUE(trained.has_result) << trained.failure.message();
  const auto config = nlohmann::json::parse(
      Read(job.work_directory() + "/output/adapter_config.json"));
  EXPECT_EQ(config["r"], 8);
  EXPECT_EQ(config["lora_alpha"], 16);
  v1::TrainerTask eval = job;
  eval.set_mode(v1::TRAINER_MODE_EVAL);
  eval.set_adapter_directory(job.work_directory() + "/output");
  EXPECT_TRUE(RunTask(eval).has_result);

  EXPECT_THAT(Refusal(with("{init_adapter: start, rank: 4}")),
              HasSubstr("has lora.rank 8, the job file says 4"));
  EXPECT_THAT(Refusal(with("{init_adapter: start, target_modules: [q_proj]}")),
              HasSubstr("the job file says [q_proj]"));
}

// On another kind of processor auto would choose another type.
TEST_F(ModesTest, Eval_ComputesInTheTypeOfTheJob) {
  const v1::TrainerTask job = Job("method: qlora", "method: lora");
  for (const char* dtype : {"float32", "bfloat16"}) {
    const auto with = [&](const char* type) {
      v1::TrainerTask task = job;
      task.set_job_file(absl::StrReplaceAll(
          job.job_file(),
          {{"max_steps: 12",
            absl::StrCat("max_steps: 12, compute_dtype: ", type)}}));
      return task;
    };
    ASSERT_TRUE(RunTask(with(dtype)).has_result);
    v1::TrainerTask eval = with(dtype[0] == 'f' ? "bfloat16" : "float32");
    eval.set_mode(v1::TRAINER_MODE_EVAL);
    eval.set_adapter_directory(job.work_directory() + "/output");
    const Run run = RunTask(eval);
    ASSERT_TRUE(run.has_result) << run.failure.message();
    for (const v1::TrainerEvent& event : run.ranks[0].events) {
      if (!event.has_eval()) continue;
      EXPECT_NEAR(event.eval().loss() / event.eval().recorded_loss(), 1, 1e-6);
    }
  }
}

// One character in two is a token here, more than in any usual job.
TEST_F(ModesTest, Phases_FillTheStepsAndDoNotOverlap) {
  const Run run = RunTask(Job("max_steps: 12", "max_steps: 6", 2));
  ASSERT_TRUE(run.has_result) << run.failure.message();
  for (const v1::MetricPoint& point : run.metrics) {
    const auto& phases = point.phase_seconds();
    double step = 0;
    for (const char* phase :
         {"data", "gather", "forward", "backward", "comm", "optim"}) {
      EXPECT_GT(phases.at(phase), 0) << phase;
      step += phases.at(phase);
    }
    // All but the evaluation before a point is the step's.
    step -= point.has_eval_loss() ? phases.at("gather") : 0;
    EXPECT_LE(step, point.step_seconds());
    EXPECT_EQ(phases.at("eval") > 0, point.has_eval_loss());
    // None was saved before the last point.
    EXPECT_EQ(phases.at("checkpoint"), 0);
  }
}

TEST_F(ModesTest, PointsOfSomeSteps_CountThemAll) {
  const Run every = RunTask(Job());
  const Run some =
      RunTask(Job("eval: {every: 5}", "eval: {every: 5}\nlogging: {every: 4}"));
  ASSERT_TRUE(every.has_result && some.has_result) << some.failure.message();
  int64_t trained = 0, total = 0;
  for (const v1::MetricPoint& point : every.metrics) {
    EXPECT_EQ(point.new_steps(), 1);
    EXPECT_EQ(point.new_tokens_trained(), point.tokens_trained());
    EXPECT_EQ(point.new_tokens_total(), point.tokens_total());
    trained += point.tokens_trained();
    total += point.tokens_total();
  }
  int64_t last = 0;
  for (const v1::MetricPoint& point : some.metrics) {
    EXPECT_EQ(point.new_steps(),
              point.step() - std::exchange(last, point.step()));
    trained -= point.new_tokens_trained();
    total -= point.new_tokens_total();
  }
  EXPECT_LT(some.metrics.size(), every.metrics.size());
  EXPECT_EQ(trained, 0);
  EXPECT_EQ(total, 0);
}

TEST_F(ModesTest, PlainText_TakesNoMoreMemoryThanPlanned) {
  v1::TrainerTask task =
      Job("rows.jsonl, format: tokens}]\n  eval_fraction: 0.2",
          "text.txt, format: text}]\n  eval_fraction: 0.001");
  v1::LocalInput& input = *task.add_inputs();
  input.set_name("text.txt");
  input.set_path(SharedData() + "/datasets/tiny_shakespeare.txt");
  // The second time the tokens come from the cache.
  for (const char* tokens : {"made", "cached"}) {
    const Run run = RunTask(task);
    ASSERT_TRUE(run.has_result) << run.failure.message();
    const v1::MetricPoint& point = run.metrics.back();
    std::printf("tiny_shakespeare, tokens %s: peak %ld MiB of %ld\n", tokens,
                point.memory_bytes() >> 20, point.planned_memory_bytes() >> 20);
    EXPECT_LE(point.memory_bytes(), point.planned_memory_bytes());
  }
}

// A job's ranks hold a share of the base each; what evaluates holds all of it.
TEST_F(ModesTest, EvalNeedsRoomForForwardsOnly) {
  const v1::TrainerTask job = Job();
  ASSERT_TRUE(RunTask(job).has_result);
  const ParsedJob parsed = ParseJobFile(job.job_file());
  const auto model = ReadModelDescription(job.model_directory());
  MemoryPlanInput input;
  input.model = &*model;
  input.spec = &parsed.spec;
  input.threads = 1;
  const int64_t training = PlanMemory(input)->total();
  input.evaluation = true;
  // The few rows take less than a mebibyte.
  input.data_bytes = 1 << 20;
  const int64_t needed = PlanMemory(input)->total();
  ASSERT_LT(needed, training);

  v1::TrainerTask eval = job;
  eval.set_mode(v1::TRAINER_MODE_EVAL);
  eval.set_adapter_directory(job.work_directory() + "/output");
  eval.set_memory_bytes(needed);
  const Run run = RunTask(eval);
  EXPECT_TRUE(run.has_result) << run.failure.message();
  // Bfloat16 where that is fast takes less, but the runtime alone is more.
  eval.set_memory_bytes(needed / 2);
  const Run refused = RunTask(eval);
  EXPECT_EQ(refused.ranks[0].exit_code, 12);
  EXPECT_THAT(refused.failure.message(), HasSubstr("evaluating a row needs"));
}

TEST_F(ModesTest, TemplateWithTheDate_ResumesOnAnotherDayWithTheSameData) {
  std::string lines;
  for (int i = 0; i < 12; ++i) {
    absl::StrAppend(
        &lines, R"({"messages": [{"role": "user", "content": "say )", i,
        R"("}, {"role": "assistant", "content": "I say )", i, "\"}]}\n");
  }
  Write("rows.jsonl", lines);
  const auto job = [&] {
    v1::TrainerTask task =
        Job("format: tokens}]",
            "format: chat}]\n  chat_template: \"{{ strftime_now('%d %b %Y') }}"
            "{% for m in messages %}{% generation %}{{ m.content }}"
            "{% endgeneration %}{% endfor %}\"");
    task.set_job_file(absl::StrReplaceAll(
        task.job_file(), {{"eval: {every: 5}", "checkpoint: {every: 5}"}}));
    return task;
  };
  const v1::TrainerTask whole = job();
  const Run uninterrupted = RunTask(whole);
  ASSERT_TRUE(uninterrupted.has_result) << uninterrupted.failure.message();

  v1::TrainerTask rest = job();
  rest.set_resume_directory(whole.work_directory() + "/staged/5");
  const Run resumed = RunTask(rest);
  ASSERT_TRUE(resumed.has_result) << resumed.failure.message();
  EXPECT_EQ(resumed.metrics.back().loss(), uninterrupted.metrics.back().loss());

  // The date does reach the template.
  rest.mutable_job_create_time()->set_seconds(rest.job_create_time().seconds() +
                                              86400);
  EXPECT_THAT(Refusal(rest), HasSubstr("other training data"));
}

// What a rank must have to train the task as it is.
int64_t PlannedBytes(const v1::TrainerTask& task) {
  const ParsedJob job = ParseJobFile(task.job_file());
  const auto model = ReadModelDescription(task.model_directory());
  const auto plan = PlanMemory({.model = &*model,
                                .spec = &job.spec,
                                .world_size = task.world_size(),
                                .threads = task.threads()});
  return plan->total();
}

TEST_F(ModesTest, OutOfMemory_HalvedMicroBatchesGiveTheSameLosses) {
  v1::TrainerTask task =
      Job("learning_rate: 5e-3",
          "learning_rate: 5e-3, compute_dtype: float32, micro_batch_size: 2, "
          "activation_memory: recompute",
          2);
  const Run whole = RunTask(task);
  ASSERT_TRUE(whole.has_result) << whole.failure.message();

  task.set_memory_bytes(PlannedBytes(task) - 1);
  const Run refused = RunTask(task);
  for (const RankOutcome& rank : refused.ranks) EXPECT_EQ(rank.exit_code, 12);
  EXPECT_EQ(refused.failure.failure_class(), v1::FAILURE_CLASS_OOM);
  EXPECT_THAT(refused.failure.message(), HasSubstr("2 rows per forward"));

  task.set_micro_batch_halvings(1);
  const Run halved = RunTask(task);
  ASSERT_TRUE(halved.has_result) << halved.failure.message();
  EXPECT_THAT(halved.logs.at(0), HasSubstr("micro-batches of 1 row"));
  ASSERT_EQ(halved.metrics.size(), whole.metrics.size());
  for (size_t i = 0; i < whole.metrics.size(); ++i) {
    EXPECT_NEAR(halved.metrics[i].loss() / whole.metrics[i].loss(), 1,
                i == 0 ? 1e-6 : 1e-5);
  }
  EXPECT_FALSE(refused.failure.least_memory());
  task.set_micro_batch_halvings(2);
  const Run least = RunTask(task);
  for (const RankOutcome& rank : least.ranks) EXPECT_EQ(rank.exit_code, 12);
  EXPECT_TRUE(least.failure.least_memory());
  EXPECT_THAT(least.failure.message(), HasSubstr("nothing is left to save"));
}

// What an agent judges a gang by.
TEST_F(ModesTest, Progress_IsSaidBeforeEachMicroBatchAndSave) {
  const Run run = RunTask(
      Job("global_batch_size: 4", "global_batch_size: 4, micro_batch_size: 2"));
  ASSERT_TRUE(run.has_result) << run.failure.message();
  std::map<std::pair<int, int64_t>, int> count;
  for (const v1::TrainerEvent& event : run.ranks[0].events) {
    if (!event.has_progress()) continue;
    ++count[{event.progress().phase(), event.progress().step()}];
    EXPECT_EQ(event.progress().bytes() > 0,
              event.progress().phase() == v1::TrainerProgress::PHASE_SAVING);
  }
  for (int64_t step = 1; step <= 12; ++step) {
    EXPECT_EQ((count[{v1::TrainerProgress::PHASE_STEP, step}]), 2) << step;
  }
  // 8 of 40 rows, after steps 5, 10 and 12.
  EXPECT_EQ((count[{v1::TrainerProgress::PHASE_EVALUATION, 5}]), 4);
  EXPECT_EQ((count[{v1::TrainerProgress::PHASE_EVALUATION, 12}]), 4);
  EXPECT_GE((count[{v1::TrainerProgress::PHASE_SAVING, 12}]), 1);
}

TEST_F(ModesTest, EvalOfAChangedAdapter_IsRefused) {
  const v1::TrainerTask job = Job();
  ASSERT_TRUE(RunTask(job).has_result);
  v1::TrainerTask eval = job;
  eval.set_mode(v1::TRAINER_MODE_EVAL);
  eval.set_adapter_directory(job.work_directory() + "/output");
  std::filesystem::resize_file(
      job.work_directory() + "/output/adapter_model.safetensors", 100);
  const Run run = RunTask(eval);
  EXPECT_NE(run.ranks[0].exit_code, 0);
  EXPECT_THAT(run.failure.message(), HasSubstr("adapter_model.safetensors"));
}

TEST_F(ModesTest, GenerateGreedy_IsTheGoldenText) {
  v1::GenerateRequest request;
  request.set_prompt("");
  request.set_max_new_tokens(60);
  EXPECT_THAT(Generate(request, ""),
              StartsWith("Once upon a time, there was a little girl named "
                         "Lily. She loved to play outside in the park."));
}

TEST_F(ModesTest, GenerateWithAdapter_SaysSomethingElse) {
  v1::GenerateRequest request;
  request.set_prompt("First Citizen");
  request.set_max_new_tokens(40);
  request.set_temperature(0.8);
  request.set_top_p(0.95);
  request.set_seed(5);
  const std::string adapter =
      SharedData() + "/adapters/stories260K-shakespeare-lora";
  const std::string with = Generate(request, adapter);
  EXPECT_NE(with, Generate(request, ""));
  EXPECT_EQ(with, Generate(request, adapter));
}

TEST_F(ModesTest, GenerateForAJob_QuantizesTheBaseAsTheJobDid) {
  v1::GenerateRequest request;
  request.set_prompt("");
  request.set_max_new_tokens(60);
  const std::string dense = Generate(request, "");
  const std::string lora =
      absl::StrReplaceAll(kJob, {{"method: qlora", "method: lora"}});
  EXPECT_EQ(Generate(request, "", lora), dense);
  EXPECT_NE(Generate(request, "", kJob), dense);
}

TEST_F(ModesTest, GenerateWithoutRoom_IsRefusedWithTheFigures) {
  v1::TrainerTask task = Task(kJob, 1);
  task.set_mode(v1::TRAINER_MODE_GENERATE);
  task.set_memory_bytes(64 << 20);
  const Run run = RunTask(task);
  EXPECT_EQ(run.ranks[0].exit_code, 12);
  EXPECT_THAT(run.failure.message(), HasSubstr("and may use 64 MiB: base"));
}

TEST_F(ModesTest, GenerateFromMessagesWithoutTemplate_IsRefused) {
  v1::TrainerTask task = Task("", 1);
  task.set_mode(v1::TRAINER_MODE_GENERATE);
  task.mutable_generate()->add_messages()->set_role("user");
  EXPECT_THAT(Refusal(task), HasSubstr("chat template"));
}

TEST_F(ModesTest, GenerateFromAnEmptyRendering_IsRefused) {
  const std::string model = Path("model");
  std::filesystem::copy(SharedData() + "/models/stories260K", model);
  Write("model/chat_template.jinja", "{# nothing #}");
  v1::TrainerTask task = Task("", 1);
  task.set_mode(v1::TRAINER_MODE_GENERATE);
  task.set_model_directory(model);
  task.mutable_generate()->add_messages()->set_role("user");
  EXPECT_THAT(Refusal(task), HasSubstr("empty prompt"));
}

// A template that would list tools where there are none, and does not in
// training, must not when it is asked.
TEST_F(ModesTest, GenerateFromMessages_TemplateSeesWhatItSeesInTraining) {
  const std::string model = Path("model");
  std::filesystem::copy(SharedData() + "/models/stories260K", model);
  Write("model/chat_template.jinja",
        "{% if tools is not none or documents is not none %}"
        "{{ raise_exception('there are no tools') }}{% endif %}"
        "{% if not add_generation_prompt %}"
        "{{ raise_exception('there is no prompt') }}{% endif %}"
        "{{ messages[0].content }}");
  v1::TrainerTask task = Task("", 1);
  task.set_mode(v1::TRAINER_MODE_GENERATE);
  task.set_model_directory(model);
  task.mutable_generate()->set_max_new_tokens(1);
  v1::ChatMessage& message = *task.mutable_generate()->add_messages();
  message.set_role("user");
  message.set_content("Once upon a time");
  const Run run = RunTask(task);
  EXPECT_TRUE(run.has_result) << run.failure.message();
}

TEST_F(ModesTest, Plan_CountsTokensAndSteps) {
  v1::TrainerTask task = Job();
  task.set_mode(v1::TRAINER_MODE_PLAN);
  const Run run = RunTask(task);
  ASSERT_TRUE(run.has_result) << run.failure.message();
  for (const v1::TrainerEvent& event : run.ranks[0].events) {
    if (!event.has_plan()) continue;
    EXPECT_EQ(event.plan().records(), 40);
    EXPECT_EQ(event.plan().rows(), 32);
    EXPECT_EQ(event.plan().eval_rows(), 8);
    EXPECT_EQ(event.plan().total_steps(), 12);
    EXPECT_EQ(event.plan().tokens_total_per_epoch(), 32 * 65);
    EXPECT_EQ(event.plan().tokens_trained_per_epoch(), 32 * 64);
    EXPECT_GT(event.plan().memory_bytes_per_rank(), 0);
    EXPECT_EQ(event.plan().activation_plan_size(), 5);
    // r * (in + out) over all linears of five blocks.
    EXPECT_EQ(event.plan().trainable_parameters(), 5 * 4 * 1156);
    EXPECT_EQ(event.plan().does_not_fit(), "");
  }
}

// The model has 512 positions.
TEST_F(ModesTest, RowsBeyondTheModelsContext_AreWarnedOfOnce) {
  constexpr char kWarning[] =
      "data.max_seq_len is 600, but the base model was made for 512 positions";
  // What is packed of short documents goes beyond no position.
  EXPECT_THAT(RunTask(Job("max_seq_len: 65", "max_seq_len: 600")).logs,
              Not(Contains(HasSubstr("positions"))));
  WriteShakespeareRows("rows.jsonl", 10, 600);
  v1::TrainerTask plan = Job("max_seq_len: 65", "max_seq_len: 600");
  plan.set_mode(v1::TRAINER_MODE_PLAN);
  const Run planned = RunTask(plan);
  ASSERT_TRUE(planned.has_result) << planned.failure.message();
  std::vector<std::string> warnings;
  for (const v1::TrainerEvent& event : planned.ranks[0].events) {
    warnings.insert(warnings.end(), event.plan().warnings().begin(),
                    event.plan().warnings().end());
  }
  EXPECT_THAT(warnings, ElementsAre(StartsWith(kWarning)));
  EXPECT_THAT(warnings,
              ElementsAre(HasSubstr("600 tokens. Set data.max_seq_len "
                                    "to 512 or less")));
  const Run run =
      RunTask(Job("max_seq_len: 65", "max_seq_len: 600", /*ranks=*/2));
  ASSERT_TRUE(run.has_result) << run.failure.message();
  EXPECT_EQ(std::ranges::count_if(run.logs,
                                  [&](const std::string& l) {
                                    return l.find(kWarning) !=
                                           std::string::npos;
                                  }),
            1);
}

TEST_F(ModesTest, ResultWorseThanTheStart_IsWarnedOf) {
  const Run good = RunTask(Job());
  ASSERT_TRUE(good.has_result) << good.failure.message();
  EXPECT_THAT(good.logs, Not(Contains(HasSubstr("the result is worse"))));
  // With data to evaluate and without, on one rank and on two.
  for (const bool with : {true, false}) {
    v1::TrainerTask task = Job("learning_rate: 5e-3", "learning_rate: 0.5",
                               /*ranks=*/with ? 2 : 1);
    if (!with) {
      task.set_job_file(absl::StrReplaceAll(
          task.job_file(),
          {{"  eval_fraction: 0.2\n", ""}, {"eval: {every: 5}", ""}}));
    }
    const Run bad = RunTask(task);
    ASSERT_TRUE(bad.has_result) << bad.failure.message();
    EXPECT_THAT(bad.logs, Contains(HasSubstr(
                              "the result is worse than what it began "
                              "with: the loss over the first batch was ")));
  }
}

TEST_F(ModesTest, PlanOfTooLittleMemory_SaysSo) {
  v1::TrainerTask task = Job();
  task.set_mode(v1::TRAINER_MODE_PLAN);
  task.set_memory_bytes(1 << 20);
  const Run run = RunTask(task);
  ASSERT_TRUE(run.has_result) << run.failure.message();
  for (const v1::TrainerEvent& event : run.ranks[0].events) {
    if (!event.has_plan()) continue;
    EXPECT_NE(event.plan().does_not_fit(), "");
  }
}

// The last values of the model's file, which are those of its last tensor.
void OverwriteEnd(const std::string& path, int count, float value) {
  std::fstream weights(path, std::ios::in | std::ios::out | std::ios::binary);
  weights.seekp(-4 * count, std::ios::end);
  for (int i = 0; i < count; ++i) {
    weights.write(reinterpret_cast<const char*>(&value), sizeof(value));
  }
}

TEST_F(ModesTest, LossOverflows_StopsAndNamesTheStep) {
  const std::string model = Path("model");
  std::filesystem::copy(SharedData() + "/models/stories260K", model);
  OverwriteEnd(model + "/model.safetensors", 64, 3e38f);
  v1::TrainerTask task = Job("", "", 2);
  task.set_model_directory(model);
  const Run run = RunTask(task);
  for (const RankOutcome& rank : run.ranks) EXPECT_EQ(rank.exit_code, 11);
  EXPECT_EQ(run.failure.failure_class(), v1::FAILURE_CLASS_NUMERICAL);
  EXPECT_THAT(run.failure.message(), StartsWith("step 1 has loss "));
}

TEST_F(ModesTest, WeightIsNaN_IsRefusedByEveryRank) {
  const std::string model = Path("model");
  std::filesystem::copy(SharedData() + "/models/stories260K", model);
  OverwriteEnd(model + "/model.safetensors", 1, std::nanf(""));
  for (const char* method :
       {"method: qlora\nlora: {rank: 4, alpha: 8}", "method: full"}) {
    v1::TrainerTask task =
        Job("method: qlora\nlora: {rank: 4, alpha: 8}", method, 2);
    task.set_model_directory(model);
    const Run run = RunTask(task);
    for (const RankOutcome& rank : run.ranks) {
      EXPECT_EQ(rank.exit_code, 10) << method;
      EXPECT_THAT(rank.events.back().failure().message(),
                  HasSubstr("has values that are not finite"));
    }
  }
}

// As if rank 1 ran on another node. Every rank must refuse with `message`.
class UnlikeNodesTest : public ModesTest {
 protected:
  void ExpectRefusal(const v1::TrainerTask& task, const std::string& message,
                     const std::function<void(v1::TrainerTask&)>& rank_1) {
    const Run run = RunTask(task, nullptr, [&](v1::TrainerTask& own) {
      if (own.rank() == 1) rank_1(own);
    });
    for (const RankOutcome& rank : run.ranks) {
      EXPECT_EQ(rank.exit_code, 10);
      EXPECT_THAT(rank.events.back().failure().message(), HasSubstr(message));
    }
  }

  // Another stories260K, whose float at `place` of the file is 0.01.
  std::string ModelWithOtherValue(int64_t place) {
    const std::string model = Path("model");
    std::filesystem::copy(SharedData() + "/models/stories260K", model);
    std::fstream weights(model + "/model.safetensors",
                         std::ios::in | std::ios::out | std::ios::binary);
    const float value = 0.01f;
    weights.seekp(place / 4 * 4);
    weights.write(reinterpret_cast<const char*>(&value), sizeof(value));
    return model;
  }

  static int64_t WeightBytes() {
    return static_cast<int64_t>(std::filesystem::file_size(
        SharedData() + "/models/stories260K/model.safetensors"));
  }
};

TEST_F(UnlikeNodesTest, OtherBase_IsRefusedByEveryRank) {
  const std::string model = ModelWithOtherValue(WeightBytes() - 4);
  ExpectRefusal(Job("", "", 2), "does not have the same base model as rank 0",
                [&](auto& task) { task.set_model_directory(model); });
}

TEST_F(UnlikeNodesTest, BaseWithoutItsWeights_IsRefusedByEveryRank) {
  const std::string model = ModelWithOtherValue(WeightBytes() - 4);
  std::filesystem::remove(model + "/model.safetensors");
  ExpectRefusal(Job("", "", 2), "does not have the same base model as rank 0",
                [&](auto& task) { task.set_model_directory(model); });
}

// What no sample of the files shows is seen when training would begin.
TEST_F(UnlikeNodesTest, OtherValueToStartFrom_IsRefusedByEveryRank) {
  const std::string model = ModelWithOtherValue(WeightBytes() / 63 * 10 + 8192);
  v1::TrainerTask job =
      Job("method: qlora\nlora: {rank: 4, alpha: 8}", "method: full", 2);
  ExpectRefusal(job, "checkpoint to start from as rank 0",
                [&](auto& task) { task.set_model_directory(model); });
}

TEST_F(UnlikeNodesTest, OtherData_IsRefusedByEveryRank) {
  WriteShakespeareRows("other.jsonl", 39, 65);
  ExpectRefusal(Job("", "", 2),
                "does not have the same training data as rank 0",
                [&](auto& task) {
                  task.mutable_inputs(0)->set_path(Path("other.jsonl"));
                });
}

TEST_F(UnlikeNodesTest, LessMemory_AllRanksFollow) {
  const std::string resources = "resources: {devices_per_node: 2}\neval:";
  v1::TrainerTask one_row = Job("eval:", resources);
  one_row.set_job_file(absl::StrReplaceAll(
      one_row.job_file(), {{"train: {max",
                            "train: {micro_batch_size: 1, activation_memory: "
                            "recompute, max"}}));
  one_row.set_mode(v1::TRAINER_MODE_PLAN);
  int64_t bytes = 0;
  const Run planned = RunTask(one_row);
  for (const v1::TrainerEvent& event : planned.ranks[0].events) {
    bytes += event.plan().memory_bytes_per_rank();
  }
  ASSERT_GT(bytes, 0);
  const Run alike = RunTask(Job("eval:", resources, 2));
  const Run unlike =
      RunTask(Job("eval:", resources, 2), nullptr, [&](v1::TrainerTask& own) {
        if (own.rank() == 1) own.set_memory_bytes(bytes);
      });
  ASSERT_EQ(unlike.metrics.size(), 12u) << unlike.failure.message();
  for (size_t i = 0; i < unlike.metrics.size(); ++i) {
    EXPECT_NEAR(unlike.metrics[i].loss() / alike.metrics[i].loss(), 1, 1e-5);
  }
}

TEST_F(ModesTest, MissingModel_IsNamed) {
  v1::TrainerTask task = Job();
  task.set_model_directory("/no/such/model");
  EXPECT_THAT(Refusal(task), HasSubstr("/no/such/model"));
}

TEST_F(ModesTest, MissingDataFile_IsNamed) {
  v1::TrainerTask task = Job();
  task.clear_inputs();
  EXPECT_THAT(Refusal(task), HasSubstr("rows.jsonl"));
}

TEST_F(ModesTest, BadRecord_IsNamedByEveryRank) {
  Write("rows.jsonl",
        "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [1, 9999]}\n");
  const Run run = RunTask(Job("", "", 2));
  for (const RankOutcome& rank : run.ranks) {
    EXPECT_EQ(rank.exit_code, 10);
    EXPECT_THAT(rank.events.back().failure().message(),
                HasSubstr("rows.jsonl:2"));
  }
}

TEST_F(ModesTest, BrokenJobFile_ListsTheKey) {
  EXPECT_THAT(Refusal(Job("max_steps: 12", "max_stepz: 12")),
              HasSubstr("max_stepz"));
}

TEST_F(ModesTest, BrokenWeights_AreNamed) {
  const std::string model = Path("model");
  std::filesystem::copy(SharedData() + "/models/stories260K", model);
  std::filesystem::resize_file(model + "/model.safetensors", 5000);
  v1::TrainerTask task = Job("", "", 2);
  task.set_model_directory(model);
  EXPECT_THAT(Refusal(task), HasSubstr("model.safetensors"));
}

}  // namespace
}  // namespace qlora::trainer
