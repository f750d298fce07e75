#include "server/store/job_log.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <thread>

#include "core_harness.h"
#include "server/telemetry.h"

namespace qlora::server {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

qlora::v1::LogLine Line(const std::string& text) {
  qlora::v1::LogLine line;
  line.set_text(text);
  return line;
}

bool Any(const std::string&) { return true; }

TEST(JobLog, Lines_ComeBackInOrderAndFromAnOffset) {
  TempDir dir;
  JobLog log(dir.path());
  EXPECT_TRUE(log.Read("j-1", LogKind::kLogs, 0)->lines.empty());
  ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, Line("one")).ok());
  ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, Line("two\n\"2\"")).ok());
  const auto first = log.Read("j-1", LogKind::kLogs, 0).value();
  ASSERT_EQ(first.lines.size(), 2u);
  EXPECT_EQ(first.lines[0], R"({"text":"one"})");
  ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, Line("three")).ok());
  const auto rest = log.Read("j-1", LogKind::kLogs, first.next_offset).value();
  ASSERT_EQ(rest.lines.size(), 1u);
  EXPECT_EQ(rest.lines[0], R"({"text":"three"})");
  log.Remove("j-1");
  EXPECT_TRUE(log.Read("j-1", LogKind::kLogs, 0)->lines.empty());
}

TEST(JobLog, TornLine_StaysAlone) {
  TempDir dir;
  {
    JobLog log(dir.path());
    ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, Line("whole")).ok());
  }
  std::ofstream(dir.path() + "/j-1/logs.jsonl", std::ios::app) << R"({"te)";
  JobLog log(dir.path());
  EXPECT_EQ(log.Read("j-1", LogKind::kLogs, 0)->lines.size(), 1u);
  ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, Line("next")).ok());
  const auto chunk = log.Read("j-1", LogKind::kLogs, 0).value();
  ASSERT_EQ(chunk.lines.size(), 3u);
  EXPECT_EQ(chunk.lines[2], R"({"text":"next"})");
}

TEST(JobLog, LineLongerThanAChunk_IsReadWhole) {
  TempDir dir;
  JobLog log(dir.path());
  ASSERT_TRUE(
      log.Append("j-1", LogKind::kLogs, Line(std::string(900000, 'x'))).ok());
  EXPECT_GT(log.Read("j-1", LogKind::kLogs, 0)->lines.at(0).size(), 900000u);
}

TEST(JobLog, Tail_FindsTheLastWantedLines) {
  TempDir dir;
  JobLog log(dir.path());
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(
        log.Append("j-1", LogKind::kLogs, Line("n" + std::to_string(i))).ok());
  }
  const auto offset = log.TailOffset("j-1", LogKind::kLogs, 3, Any).value();
  EXPECT_EQ(log.Read("j-1", LogKind::kLogs, offset)->lines.size(), 3u);
  EXPECT_EQ(log.TailOffset("j-1", LogKind::kLogs, 30, Any).value(), 0);
}

TEST(JobLog, Tail_OfALongFile_IsReadFromItsEnd) {
  TempDir dir;
  JobLog log(dir.path());
  const std::string filler(5000, 'x');
  for (int i = 0; i < 400; ++i) {
    ASSERT_TRUE(log.Append("j-1", LogKind::kLogs,
                           Line("n" + std::to_string(i) + filler))
                    .ok());
  }
  std::ofstream(dir.path() + "/j-1/logs.jsonl", std::ios::app) << R"({"te)";
  int asked = 0;
  const auto wanted = [&](const std::string& line) {
    ++asked;
    return line.find("7x") != std::string::npos;
  };
  const auto offset = log.TailOffset("j-1", LogKind::kLogs, 3, wanted).value();
  EXPECT_EQ(asked, 23);
  const auto lines = log.Read("j-1", LogKind::kLogs, offset)->lines;
  EXPECT_EQ(lines.size(), 23u);
  EXPECT_EQ(lines[0].find(R"({"text":"n377x)"), 0u);
  EXPECT_EQ(log.TailOffset("j-1", LogKind::kLogs, 400, Any).value(), 0);
  EXPECT_EQ(log.TailOffset("j-2", LogKind::kLogs, 1, Any).value(), 0);
}

TEST(JobLog, DirectoryThatCouldNotBeMade_IsMadeLater) {
  TempDir dir;
  JobLog log(dir.path());
  std::ofstream(dir.path() + "/j-1") << "in the way";
  EXPECT_FALSE(log.Append("j-1", LogKind::kLogs, Line("lost")).ok());
  ASSERT_TRUE(RemoveRecursively(dir.path() + "/j-1").ok());
  EXPECT_TRUE(log.Append("j-1", LogKind::kLogs, Line("kept")).ok());
}

TEST(JobLog, WhatNoJobIsLeftOf_GoesWithTime) {
  TempDir dir;
  JobLog log(dir.path());
  // All is hours older than it is.
  const auto age = [&](int hours) {
    for (const auto& entry : fs::recursive_directory_iterator(dir.path())) {
      fs::last_write_time(
          entry, fs::last_write_time(entry) - std::chrono::hours(hours));
    }
  };
  const auto left = [&] {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir.path())) {
      names.insert(entry.path().filename());
    }
    return names;
  };
  const auto collect = [&](const std::set<std::string>& known) {
    log.Collect(known, absl::Now() - absl::Hours(4));
  };
  const std::set<std::string> all = {"j-1", "j-2", "j-3", "others"};
  for (const std::string& job : all) {
    ASSERT_TRUE(log.Append(job, LogKind::kLogs, Line("x")).ok());
  }
  // However old the files are, the time begins when nobody knows them.
  age(1000);
  collect({"j-1"});
  age(3);
  collect({"j-1"});
  EXPECT_EQ(left(), all);
  // And anew after somebody did.
  collect({"j-1", "j-2"});
  collect({"j-1"});
  age(3);
  collect({"j-1"});
  EXPECT_EQ(left(), (std::set<std::string>{"j-1", "j-2", "others"}));
  age(3);
  collect({"j-1"});
  EXPECT_EQ(left(), (std::set<std::string>{"j-1", "others"}));
}

TEST(JobLog, ManyWriters_LoseNoLine) {
  TempDir dir;
  JobLog log(dir.path());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&log] {
      for (int i = 0; i < 100; ++i) {
        ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, Line("line")).ok());
      }
      log.Sync();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(log.Read("j-1", LogKind::kLogs, 0)->lines.size(), 400u);
}

qlora::v1::MetricPoint Point(int attempt, int64_t step, double loss) {
  qlora::v1::MetricPoint point;
  point.set_attempt(attempt);
  point.set_step(step);
  point.set_total_steps(10);
  point.set_loss(loss);
  point.set_step_seconds(2);
  point.set_tokens_trained(30);
  point.set_tokens_total(50);
  point.set_new_steps(2);
  point.set_new_tokens_trained(70);
  point.set_new_tokens_total(110);
  return point;
}

TEST(Telemetry, Steps_AreTakenOnce) {
  TempDir dir;
  JobLog log(dir.path());
  FakeClock clock(absl::FromUnixSeconds(1000));
  Telemetry telemetry(&log, &clock);
  EXPECT_TRUE(telemetry.OnPoint("j-1", Point(1, 1, 3)));
  EXPECT_TRUE(telemetry.OnPoint("j-1", Point(1, 2, 2)));
  EXPECT_FALSE(telemetry.OnPoint("j-1", Point(1, 2, 2)));
  EXPECT_TRUE(telemetry.OnPoint("j-1", Point(2, 1, 2.5)));
  EXPECT_FALSE(telemetry.OnPoint("j-1", Point(1, 3, 1)));
  EXPECT_EQ(telemetry.Progress("j-1").step(), 1);
  EXPECT_EQ(telemetry.Progress("j-1").eta().seconds(), 18);
}

TEST(Telemetry, Series_LeaveSomeMinutesAfterTheEnd) {
  TempDir dir;
  JobLog log(dir.path());
  FakeClock clock(absl::FromUnixSeconds(1000));
  Telemetry telemetry(&log, &clock);
  telemetry.OnPoint("j-1", Point(1, 1, 3.5));
  EXPECT_NE(telemetry.Text({}).find("qlora_train_loss{job_id=\"j-1\"} 3.5"),
            std::string::npos);
  telemetry.OnPoint("j-1", Point(1, 3, 3));
  // Those of steps that were not logged too.
  EXPECT_THAT(
      telemetry.Text({}),
      AllOf(HasSubstr("qlora_train_steps_total{job_id=\"j-1\"} 4\n"),
            HasSubstr("_tokens_total{job_id=\"j-1\",kind=\"masked\"} 80\n"),
            HasSubstr("_tokens_total{job_id=\"j-1\",kind=\"trained\"} 140\n")));
  telemetry.OnJobEnded("j-1");
  clock.Advance(absl::Minutes(4));
  EXPECT_NE(telemetry.Text({}).find("j-1"), std::string::npos);
  clock.Advance(absl::Minutes(2));
  EXPECT_EQ(telemetry.Text({}).find("j-1"), std::string::npos);
}

TEST(Telemetry, EtaWithoutEnd_CanBeWritten) {
  TempDir dir;
  JobLog log(dir.path());
  FakeClock clock(absl::FromUnixSeconds(1000));
  Telemetry telemetry(&log, &clock);
  int64_t step = 0;
  const auto eta = [&](double step_seconds) {
    qlora::v1::MetricPoint point = Point(1, ++step, 3);
    point.set_step_seconds(step_seconds);
    telemetry.OnPoint("j-1", point);
    std::string json;
    EXPECT_TRUE(google::protobuf::util::MessageToJsonString(
                    telemetry.Progress("j-1").eta(), &json)
                    .ok());
    return json;
  };
  EXPECT_EQ(eta(1e300), "\"315576000000s\"");
  EXPECT_EQ(eta(std::numeric_limits<double>::infinity()), "\"0s\"");
  EXPECT_EQ(eta(std::nan("")), "\"0s\"");
}

TEST(Telemetry, Devices_AreCountedByUse) {
  CoreHarness core;
  core.Advance(absl::Seconds(600));
  JobLog log("/nowhere");
  FakeClock clock(core.now);
  Telemetry telemetry(&log, &clock);
  const auto text = [&] { return telemetry.Text(StateFamilies(core.state())); };
  const auto count = [](const std::string& use, int devices) {
    return HasSubstr("qlora_devices{node=\"n1\",model=\"\",state=\"" + use +
                     "\"} " + std::to_string(devices) + "\n");
  };
  const auto heard =
      HasSubstr("qlora_worker_last_heartbeat_timestamp_seconds{node=\"n1\"}");
  ASSERT_TRUE(core.Join("n1", 3).ok());
  const std::string id = core.RunningJob("n1");
  EXPECT_THAT(text(), AllOf(heard, count("busy", 1), count("free", 2)));
  // What was given up may still run there.
  core.Disconnect("n1");
  core.Advance(absl::Seconds(31));
  core.Advance(absl::Seconds(90));
  ASSERT_EQ(core.attempt(id).state(), ATTEMPT_STATE_LOST);
  EXPECT_THAT(text(), AllOf(heard, count("busy", 1), count("unavailable", 2),
                            Not(HasSubstr("state=\"free\""))));
  core.Restart();
  EXPECT_THAT(text(), Not(heard));
}

TEST(Telemetry, Progress_IsReadFromTheFileAfterARestart) {
  TempDir dir;
  JobLog log(dir.path());
  ASSERT_TRUE(log.Append("j-1", LogKind::kMetrics, Point(1, 7, 3)).ok());
  FakeClock clock(absl::FromUnixSeconds(1000));
  Telemetry telemetry(&log, &clock);
  EXPECT_EQ(telemetry.Progress("j-1").step(), 7);
  EXPECT_FALSE(telemetry.OnPoint("j-1", Point(1, 7, 3)));
}

std::vector<std::string> Texts(const JobLog& log, LogKind kind) {
  std::vector<std::string> texts;
  const JobLog::Chunk chunk = log.Read("j-1", kind, 0).value();
  for (const std::string& text : chunk.lines) {
    qlora::v1::LogLine line;
    EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(text, &line).ok());
    texts.push_back(line.text());
  }
  return texts;
}

TEST(JobLog, LogThatReachesItsLimit_SaysSoOnceAndEnds) {
  TempDir dir;
  qlora::v1::LogLine line;
  line.set_text(std::string(100, 'x'));
  line.set_rank(3);
  // A restart changes nothing.
  for (int i = 0; i < 4; ++i) {
    JobLog log(dir.path(), 150);
    ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, line).ok());
    ASSERT_TRUE(log.Append("j-1", LogKind::kEvents, line).ok());
  }
  const JobLog log(dir.path(), 150);
  EXPECT_THAT(
      Texts(log, LogKind::kLogs),
      ::testing::ElementsAre(line.text(), line.text(),
                             "log truncated at 150 B (--job-log-limit of "
                             "qlora-coordinator)"));
  EXPECT_EQ(Texts(log, LogKind::kEvents).size(), 4u);
}

TEST(JobLog, LogBeyondALimitThatWasLowered_SaysSoOnceAndEnds) {
  TempDir dir;
  const qlora::v1::LogLine line = Line("\"text\":\"log truncated at ");
  for (const int64_t limit : {1000, 20, 20, 10}) {
    JobLog log(dir.path(), limit);
    for (int i = 0; i < 2; ++i) {
      ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, line).ok());
    }
  }
  EXPECT_THAT(Texts(JobLog(dir.path()), LogKind::kLogs),
              ::testing::ElementsAre(line.text(), line.text(),
                                     "log truncated at 20 B (--job-log-limit "
                                     "of qlora-coordinator)"));
}

// A machine's crash brought the end back: the reader goes on from there.
TEST(JobLog, OffsetBehindTheEnd_GoesOnAtTheEnd) {
  TempDir dir;
  JobLog log(dir.path());
  constexpr int64_t kFar = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(log.Read("j-1", LogKind::kLogs, kFar)->next_offset, 0);
  ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, Line("one")).ok());
  const auto end = log.Read("j-1", LogKind::kLogs, kFar);
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_TRUE(end->lines.empty());
  ASSERT_TRUE(log.Append("j-1", LogKind::kLogs, Line("two")).ok());
  EXPECT_EQ(log.Read("j-1", LogKind::kLogs, end->next_offset)->lines.size(),
            1u);
}

}  // namespace
}  // namespace qlora::server
