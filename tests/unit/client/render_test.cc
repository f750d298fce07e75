#include "client/render.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "client/errors.h"
#include "client/follow.h"

namespace qlora::client {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

v1::Job RunningJob() {
  v1::Job job;
  job.set_job_id("j-0123456789ab");
  job.set_name("support-bot");
  job.set_state(v1::JOB_STATE_RUNNING);
  job.set_method("qlora");
  job.set_priority(50);
  job.mutable_create_time()->set_seconds(1'000'000);
  job.mutable_progress()->set_step(12);
  job.mutable_progress()->set_total_steps(60);
  job.mutable_progress()->set_loss(1.84321);
  job.mutable_progress()->mutable_eta()->set_seconds(75);
  v1::RankAssignment* rank = job.add_ranks();
  rank->set_node("local");
  rank->set_device("cpu:0");
  return job;
}

const absl::Time kNow = absl::FromUnixSeconds(1'000'090);

std::string Show(const v1::Job& job, OutputFormat format) {
  std::ostringstream out;
  Output output;
  output.out = &out;
  output.format = format;
  const absl::Status status = PrintOne(output, job, JobView(kNow));
  EXPECT_TRUE(status.ok()) << status;
  return out.str();
}

TEST(JobView, Table_HasColumnsAlignedAndNoTrailingBlanks) {
  EXPECT_EQ(Show(RunningJob(), OutputFormat::kTable),
            "ID              NAME         STATE    METHOD   STEP   LOSS    ETA "
            "   AGE\n"
            "j-0123456789ab  support-bot  RUNNING  qlora   12/60  1.843  1m15s "
            " 1m30s\n");
}

TEST(JobView, Wide_AddsColumns) {
  EXPECT_THAT(Show(RunningJob(), OutputFormat::kWide), HasSubstr("RESTARTS"));
}

TEST(JobView, Name_IsTheIdAlone) {
  EXPECT_EQ(Show(RunningJob(), OutputFormat::kName), "j-0123456789ab\n");
}

TEST(JobView, JsonAndYaml_AreTheProtoMapping) {
  v1::Job job = RunningJob();
  job.set_job_file("a: 1\nb: 2\n");
  job.set_reason("true");
  const auto json = nlohmann::json::parse(Show(job, OutputFormat::kJson));
  EXPECT_EQ(json["jobId"], "j-0123456789ab");
  EXPECT_EQ(json["state"], "JOB_STATE_RUNNING");
  const YAML::Node yaml = YAML::Load(Show(job, OutputFormat::kYaml));
  EXPECT_EQ(yaml["jobFile"].as<std::string>(), "a: 1\nb: 2\n");
  EXPECT_EQ(yaml["reason"].Tag(), "!") << "must be quoted to stay a string";
  EXPECT_EQ(yaml["progress"]["totalSteps"].as<std::string>(), "60");
}

TEST(ToJson, ValuesThatAreZero_AreThere) {
  const auto json = [](const google::protobuf::Message& message) {
    return nlohmann::json::parse(*ToJson(message, /*one_line=*/true));
  };
  EXPECT_EQ(json(v1::ListJobsResponse()).dump(), "{\"jobs\":[]}");
  EXPECT_EQ(json(v1::VerifyAdapterResponse())["passed"], false);
  // Absent is another thing than zero.
  EXPECT_FALSE(json(v1::MetricPoint()).contains("evalLoss"));
  EXPECT_FALSE(json(v1::MetricPoint()).contains("nextOffset"));
  EXPECT_FALSE(json(v1::Job()).contains("lastFailure"));
  EXPECT_EQ(*ToYaml(v1::ListJobsResponse()), "jobs:\n  []\n");
}

TEST(JobView, Jsonl_IsOneLine) {
  const std::string text = Show(RunningJob(), OutputFormat::kJsonl);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
}

TEST(ParseOutputFormat, Unknown_IsAUsageError) {
  EXPECT_EQ(ExitCodeFor(ParseOutputFormat("xml").status()), kExitUsage);
}

TEST(DescribeJob, ShowsStateReasonEventsAndFile) {
  v1::Job job = RunningJob();
  job.set_state(v1::JOB_STATE_FAILED);
  job.set_failure_class(v1::FAILURE_CLASS_USER);
  job.set_reason("train.jsonl:3: no JSON");
  job.set_job_file("name: support-bot\n");
  v1::JobEvent event;
  event.set_type("Failed");
  event.set_message("train.jsonl:3: no JSON");
  const std::string text = DescribeJob(job, {event}, {}, kNow);
  EXPECT_THAT(text, HasSubstr("State:        FAILED (USER)\n"));
  EXPECT_THAT(text, HasSubstr("Reason:       train.jsonl:3: no JSON\n"));
  EXPECT_THAT(text, HasSubstr("Failed"));
  EXPECT_THAT(text, HasSubstr("  name: support-bot\n"));
}

v1::Job HeldJob() {
  v1::Job job = RunningJob();
  job.set_state(v1::JOB_STATE_HELD);
  job.set_failure_class(v1::FAILURE_CLASS_DISK);
  job.set_reason("n1: /data: No space left on device");
  job.set_hint("qloractl resume j-0123456789ab after making space");
  job.mutable_last_failure()->set_attempt(2);
  job.mutable_last_failure()->set_failure_class(v1::FAILURE_CLASS_DISK);
  job.mutable_last_failure()->set_message("/data: No space left on device");
  return job;
}

TEST(DescribeJob, Held_SaysWhyAndWhatToDo) {
  const std::string text = DescribeJob(HeldJob(), {}, {}, kNow);
  EXPECT_THAT(text, HasSubstr("State:        HELD (DISK)\n"));
  EXPECT_THAT(text, HasSubstr("Reason:       n1: /data: No space left on"));
  EXPECT_THAT(text, HasSubstr("Hint:         qloractl resume j-0123456789ab"));
  EXPECT_THAT(text, testing::Not(HasSubstr("Last failure")));
  EXPECT_EQ(FormatTrouble(HeldJob()),
            "reason: n1: /data: No space left on device\n"
            "hint: qloractl resume j-0123456789ab after making space\n");
  EXPECT_EQ(FormatTrouble(RunningJob()), "");
}

TEST(DescribeJob, LastFailure_IsShownWhenTheReasonIsAnother) {
  v1::Job job = HeldJob();
  job.set_state(v1::JOB_STATE_RUNNING);
  job.clear_reason();
  EXPECT_THAT(DescribeJob(job, {}, {}, kNow),
              HasSubstr("Last failure: attempt 2, - (DISK): /data: No space"));
}

TEST(DescribeJob, CountsOfTheData_AreShownOnceTheyAreKnown) {
  v1::Job job = RunningJob();
  EXPECT_THAT(DescribeJob(job, {}, {}, kNow),
              testing::Not(HasSubstr("Records:")));
  v1::DataCounts& data = *job.mutable_data();
  data.set_records(58);
  data.set_bad_records(2);
  data.set_split_records(3);
  data.set_rows(40);
  data.set_eval_rows(6);
  EXPECT_THAT(DescribeJob(job, {}, {}, kNow),
              HasSubstr("Records:      58 read, 2 bad (skipped), 3 split\n"
                        "Rows:         40 to train, 6 to evaluate\n"));
  EXPECT_EQ(DataText(data),
            "records: 58 read, 2 bad (skipped), 3 split; rows: 40 to train, 6 "
            "to evaluate");
}

TEST(DescribeJob, ManyEvents_ShowsTheLastAndWhereTheRestIs) {
  std::vector<v1::JobEvent> events(45);
  for (int i = 0; i < 45; ++i) {
    events[i].set_type("T" + std::to_string(i));
    events[i].set_message("event-" + std::to_string(i) + ";");
  }
  const std::string text = DescribeJob(RunningJob(), events, {}, kNow);
  EXPECT_THAT(text, HasSubstr("the newest of 45; all: qloractl events"));
  EXPECT_THAT(text, testing::Not(HasSubstr("event-24;")));
  EXPECT_THAT(text, HasSubstr("event-25;"));
  EXPECT_THAT(text, HasSubstr("event-44;"));
}

TEST(DescribeJob, EventsOfTwoNodes_AreTwoLines) {
  std::vector<v1::JobEvent> events(2);
  events[0].set_message("n1 did not end its ranks");
  events[1].set_message("n2 did not end its ranks");
  const std::string text = DescribeJob(RunningJob(), events, {}, kNow);
  EXPECT_THAT(text, HasSubstr("n1 did not end its ranks\n"));
  EXPECT_THAT(text, HasSubstr("n2 did not end its ranks\n"));
}

TEST(DescribeJob, RepeatedEvents_AreOneLine) {
  std::vector<v1::JobEvent> events(40);
  for (int i = 0; i < 40; ++i) {
    events[i].set_type("CheckpointCommitted");
    events[i].set_message("step " + std::to_string(i) + " is committed");
    events[i].mutable_time()->set_seconds(10 * i);
  }
  events[0].set_type("Running");
  events[39].set_attempt(2);
  const std::string text = DescribeJob(RunningJob(), events, {}, kNow);
  EXPECT_THAT(text, HasSubstr("step 38 is committed (x38 over 6m10s)\n"));
  EXPECT_THAT(text, testing::Not(HasSubstr("step 37 ")));
  EXPECT_THAT(text, HasSubstr("step 39 is committed\n"));
  EXPECT_THAT(text, HasSubstr("\nEvents:\n"));
}

v1::MetricPoint Point() {
  v1::MetricPoint point;
  point.set_step(3);
  point.set_total_steps(60);
  point.set_loss(2.5);
  point.set_learning_rate(2e-4);
  point.set_tokens_per_second(812.4);
  return point;
}

TEST(MetricsCsv, HasHeaderAndEmptyCellWithoutEvaluation) {
  v1::MetricPoint with_eval = Point();
  with_eval.set_eval_loss(2.25);
  const std::string text = MetricsCsv({Point(), with_eval});
  EXPECT_THAT(text, testing::StartsWith("step,epoch,time,loss,"));
  EXPECT_THAT(text, HasSubstr("3,0.0,1970-01-01T00:00:00Z,2.5,0.0,0.0002,"));
  EXPECT_THAT(text, HasSubstr(",0,\n"));
  EXPECT_THAT(text, HasSubstr(",2.25\n"));
}

TEST(MetricsJsonl, HasTheKeysOfMetricsJsonl) {
  const auto line = nlohmann::json::parse(MetricsJsonl({Point()}));
  EXPECT_EQ(line["step"], 3);
  EXPECT_EQ(line["tokens_per_second"], 812.4);
  EXPECT_FALSE(line.contains("eval_loss"));
}

TEST(Outcome, EachState_HasItsExitCodeAndNextCommand) {
  v1::Job job = RunningJob();
  EXPECT_EQ(OutcomeExitCode(job), kExitJobNotFinished);
  job.set_state(v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(OutcomeExitCode(job), kExitOk);
  EXPECT_THAT(OutcomeText(job, 3.25),
              HasSubstr("12 steps, loss 3.2500 -> 1.8432\nnext: qloractl "
                        "adapter pull j-0123456789ab --to support-bot"));
  job.mutable_finish_time()->set_seconds(12);
  job.mutable_start_time();
  EXPECT_THAT(OutcomeText(job, 3.25, 1),
              HasSubstr("SUCCEEDED j-0123456789ab after 12s with 1 warning: 12 "
                        "steps, loss"));
  job.mutable_progress()->set_has_eval_loss(true);
  job.mutable_progress()->set_eval_loss(1.5);
  EXPECT_THAT(OutcomeText(job, 3.25),
              HasSubstr("loss 3.2500 -> 1.8432, evaluation loss 1.5000\n"));
  job.set_method("full");
  EXPECT_THAT(OutcomeText(job, 3.25), HasSubstr("qloractl model pull"));
  job.set_state(v1::JOB_STATE_FAILED);
  job.set_failure_class(v1::FAILURE_CLASS_NUMERICAL);
  job.set_reason("loss is NaN at step 13");
  job.set_hint("qloractl logs j-0123456789ab");
  EXPECT_EQ(OutcomeExitCode(job), kExitJobFailed);
  EXPECT_THAT(OutcomeText(job, 3.25),
              HasSubstr("(NUMERICAL): loss is NaN at step 13\nnext: qloractl "
                        "logs j-0123456789ab"));
  job.clear_hint();
  job.set_failure_class(v1::FAILURE_CLASS_USER);
  job.set_reason("2 bad records:\nf:1: x\nf:2: y");
  EXPECT_THAT(OutcomeText(job, 3.25),
              EndsWith("(USER): 2 bad records:\nf:1: x\nf:2: y"));
  EXPECT_EQ(FormatTrouble(job),
            "reason: 2 bad records:\n        f:1: x\n        f:2: y\n");
  job.set_state(v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(OutcomeExitCode(job), kExitJobCancelled);
  EXPECT_EQ(OutcomeExitCode(HeldJob()), kExitJobNotFinished);
  EXPECT_THAT(OutcomeText(HeldJob(), 3.25),
              HasSubstr("(DISK): n1: /data: No space left on device\nnext: "
                        "qloractl resume j-0123456789ab after making space"));
}

LiveStep Step() {
  LiveStep step;
  step.point = Point();
  step.point.set_step_seconds(2);
  return step;
}

TEST(ProgressText, Running_ShowsStepLossRateSpeedAndEta) {
  EXPECT_EQ(ProgressText(RunningJob(), Step(), true, false, 120),
            "[#.......................] 3/60  loss 2.5000  lr 0.0002  812 tok/s"
            "  ETA 1m54s");
  EXPECT_THAT(ProgressText(RunningJob(), Step(), false, false, 120),
              HasSubstr("away"));
}

TEST(ProgressText, NarrowTerminal_LeavesOutWhatMattersLeast) {
  v1::Job job = RunningJob();
  job.mutable_progress()->set_has_eval_loss(true);
  job.mutable_progress()->set_eval_loss(2.25);
  const auto at = [&](int width) {
    return ProgressText(job, Step(), true, false, width);
  };
  EXPECT_EQ(at(79),
            "[#.........] 3/60  loss 2.5000  lr 0.0002  812 tok/s  ETA 1m54s  "
            "eval 2.2500");
  EXPECT_EQ(
      at(70),
      "[#.........] 3/60  loss 2.5000  812 tok/s  ETA 1m54s  eval 2.2500");
  EXPECT_EQ(at(60), "[#.........] 3/60  loss 2.5000  ETA 1m54s  eval 2.2500");
  EXPECT_EQ(at(50), "3/60  loss 2.5000  ETA 1m54s  eval 2.2500");
  EXPECT_EQ(at(30), "3/60  loss 2.5000  ETA 1m54s");
  EXPECT_EQ(at(5), "3/60  loss 2.5000  ETA 1m54s");
}

TEST(ProgressText, NothingMoves_SaysSoInPlaceOfAnEta) {
  LiveStep step = Step();
  step.age = absl::Seconds(29);
  EXPECT_THAT(ProgressText(RunningJob(), step, true, false, 120),
              HasSubstr("ETA 1m54s"));
  step.age = absl::Seconds(61);
  EXPECT_THAT(ProgressText(RunningJob(), step, true, false, 120),
              EndsWith("812 tok/s  no step for 1m01s"));
  // Only every tenth step is logged.
  step.interval = 10;
  EXPECT_THAT(ProgressText(RunningJob(), step, true, false, 120),
              HasSubstr("ETA 1m54s"));
  v1::Job job = RunningJob();
  job.set_reason("waits for node n2 until 12:00:00");
  EXPECT_EQ(ProgressText(job, step, true, false, 120),
            "RUNNING on local cpu:0: waits for node n2 until 12:00:00");
}

TEST(FormatPoint, NotANumber_HasNoSign) {
  v1::MetricPoint point = Point();
  point.set_loss(-std::numeric_limits<double>::quiet_NaN());
  point.set_grad_norm(point.loss());
  EXPECT_THAT(FormatPoint(point), HasSubstr(" loss nan grad_norm nan lr "));
}

TEST(Table, CellOfSeveralLines_ShowsTheFirst) {
  Table table({{"A"}, {"B"}});
  table.AddRow({"1", "one\ntwo"});
  table.AddRow({"2", "x"});
  EXPECT_EQ(table.Format(false), "A  B\n1  one ...\n2  x\n");
}

TEST(FormatEvent, FurtherLines_StandBelowTheFirst) {
  v1::JobEvent event;
  event.set_message("m\nn");
  const std::string text = FormatEvent(event);
  const size_t column = text.find("m\n");
  EXPECT_EQ(text.substr(column), "m\n" + std::string(column, ' ') + "n\n");
}

TEST(FormatEvent, LongestType_KeepsTheColumns) {
  v1::JobEvent event;
  event.set_type("Running");
  event.set_message("m");
  const size_t column = FormatEvent(event).find(" m\n");
  event.set_type("CheckpointCommitted");
  EXPECT_EQ(FormatEvent(event).find(" m\n"), column);
}

TEST(Terminal, TextsAreMeasuredInColumns) {
  EXPECT_EQ(DisplayWidth("\x1b[1mab\x1b[0m█"), 3);
  EXPECT_EQ(DisplayWidth("数据集 x"), 8);
  EXPECT_EQ(DisplayWidth("🙂"), 2);
  EXPECT_EQ(DisplayWidth("e\u0301é"), 2);
  EXPECT_EQ(DisplayWidth("한"), 2);
  EXPECT_EQ(DisplayWidth("\xe6\x95"), 1) << "cut off in the middle";
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(12), "12 B");
  EXPECT_EQ(ShortDuration(absl::Seconds(3725)), "1h02m");
  EXPECT_EQ(ShortDuration(absl::Seconds(-3)), "0s");
  EXPECT_EQ(Bar(2.0, 3, false), "[###]");
}

}  // namespace
}  // namespace qlora::client
