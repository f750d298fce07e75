// The verbs that stay with a job: over breaks of their streams, until they end.
#include "client/follow.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "client/verbs.h"
#include "tests/unit/client/fake_server.h"

namespace qlora::client {
namespace {

using testing::HasSubstr;
using testing::Not;

class Follow : public testing::Test {
 protected:
  Follow() {
    session_.endpoint = server_.endpoint;
    session_.output.out = &out_;
  }

  // What the verb wrote to standard error goes to err_.
  template <typename F>
  int Run(F verb) {
    testing::internal::CaptureStderr();
    const absl::StatusOr<int> code = verb();
    err_ = testing::internal::GetCapturedStderr();
    EXPECT_TRUE(code.ok()) << code.status();
    return code.value_or(-1);
  }
  static v1::Job Running() {
    v1::Job job;
    job.set_job_id("j-1");
    job.set_state(v1::JOB_STATE_RUNNING);
    return job;
  }
  std::string Lines(const std::string& what) const {
    std::string lines;
    std::istringstream text(out_.str());
    for (std::string line; std::getline(text, line);) {
      const size_t at = line.find(what);
      if (at != std::string::npos) lines += line.substr(at + what.size());
    }
    return lines;
  }

  FakeServer server_;
  std::ostringstream out_;
  std::string err_;
  Session session_;
};

TEST_F(Follow, Logs_StreamBreaks_EachLineOnceAndANote) {
  server_.jobs.record_breaks = 3;
  server_.jobs.away = 2;
  LogsOptions options{.job = "@last", .follow = true};
  EXPECT_EQ(Run([&] { return Logs(session_, options); }), kExitOk);
  EXPECT_EQ(Lines("line "), "1;2;3;4;5;");
  EXPECT_THAT(err_, HasSubstr(kAwayNote));
  EXPECT_THAT(err_, HasSubstr(kBackNote));
}

TEST_F(Follow, Events_ServerThatShutsDownCancels_GoesOn) {
  server_.jobs.record_breaks = 2;
  server_.jobs.broken_with = grpc::StatusCode::CANCELLED;
  EventsOptions options{.job = "j-1", .follow = true};
  EXPECT_EQ(Run([&] { return Events(session_, options); }), kExitOk);
  EXPECT_EQ(Lines("event "), "1;2;3;4;5;");
}

TEST_F(Follow, Logs_WithoutFollow_ABreakIsAnError) {
  server_.jobs.record_breaks = 1;
  const absl::StatusOr<int> code = Logs(session_, {.job = "j-1"});
  EXPECT_EQ(ExitCodeFor(code.status()), kExitUnavailable);
}

TEST_F(Follow, Logs_TimeoutWhileTheCoordinatorIsAway_SaysHowToComeBack) {
  server_.jobs.record_breaks = 1'000'000;
  server_.jobs.points = 1'000'000;
  LogsOptions options{.job = "j-1", .follow = true};
  options.timeout = absl::Milliseconds(300);
  EXPECT_EQ(Run([&] { return Logs(session_, options); }), kExitJobNotFinished);
  EXPECT_THAT(err_, HasSubstr("the job goes on\nnext: qloractl wait j-1\n"));
}

TEST_F(Follow, Json_HasNoOffsets) {
  session_.output.format = OutputFormat::kJsonl;
  EXPECT_EQ(Run([&] { return Logs(session_, {.job = "j-1"}); }), kExitOk);
  EXPECT_THAT(out_.str(), HasSubstr("line 5;"));
  EXPECT_THAT(out_.str(), Not(HasSubstr("nextOffset")));
}

TEST_F(Follow, JobHeld_EndsWithReasonAndWhatToType) {
  server_.jobs.last.set_state(v1::JOB_STATE_HELD);
  server_.jobs.last.set_hint("qloractl resume j-1");
  server_.jobs.last.set_failure_class(v1::FAILURE_CLASS_NUMERICAL);
  server_.jobs.last.set_reason("the loss of step 3 is not finite");
  EXPECT_EQ(Run([&] { return FollowJob(session_, Running(), {}); }),
            kExitJobNotFinished);
  EXPECT_THAT(out_.str(),
              HasSubstr("HELD j-1 (NUMERICAL): the loss of step 3 is not "
                        "finite\nnext: qloractl resume j-1\n"));
  out_.str("");
  EXPECT_EQ(
      Run([&] { return Wait(session_, "@last", absl::InfiniteDuration()); }),
      kExitJobNotFinished);
  EXPECT_THAT(out_.str(), HasSubstr("HELD j-1 (NUMERICAL): the loss"));
}

TEST_F(Follow, Warnings_EachOnceAndCountedAtTheEnd) {
  server_.jobs.warnings = {
      {1, "no GPU"}, {2, "slow disk\nfull soon"}, {4, "no GPU"}};
  server_.jobs.record_breaks = 3;
  EXPECT_EQ(Run([&] { return FollowJob(session_, Running(), {}); }), kExitOk);
  EXPECT_EQ(Lines("warning: "), "no GPUslow disk");
  EXPECT_THAT(out_.str(),
              HasSubstr("warning: slow disk\n         full soon\n"));
  EXPECT_THAT(out_.str(), HasSubstr("SUCCEEDED j-1 with 2 warnings\n"));
}

TEST_F(Follow, AnotherAttempt_IsSaidBeforeItsSteps) {
  server_.jobs.attempt_ends_at = 3;
  EXPECT_EQ(Run([&] { return FollowJob(session_, Running(), {}); }), kExitOk);
  EXPECT_EQ(Lines("attempt "), "2 starts from the beginning");
  EXPECT_THAT(out_.str(), testing::ContainsRegex(
                              "step 3/.*\nattempt 2 .*\nstep 1/.*\nstep 2/"));
}

TEST_F(Follow, Timeout_DetachesAndTheJobGoesOn) {
  server_.jobs.watch_breaks = 1'000'000;
  FollowOptions options;
  options.timeout = absl::Milliseconds(200);
  EXPECT_EQ(Run([&] { return FollowJob(session_, Running(), options); }),
            kExitJobNotFinished);
  // The state was printed as a result; in a pipe it is not said again.
  EXPECT_THAT(out_.str(), HasSubstr("RUNNING\n"));
  EXPECT_THAT(err_, Not(HasSubstr("RUNNING")));
  EXPECT_THAT(err_, HasSubstr("detached (--timeout); the job goes on\n"
                              "next: qloractl wait j-1\n"));
}

TEST_F(Follow, Timeout_OfAJobThatHasEnded_IsItsEnd) {
  server_.jobs.state = v1::JOB_STATE_CANCELLED;
  server_.jobs.watch_breaks = 1'000'000;
  EXPECT_EQ(Run([&] { return Wait(session_, "j-1", absl::ZeroDuration()); }),
            kExitJobCancelled);
  EXPECT_THAT(out_.str(), HasSubstr("CANCELLED j-1\n"));
  EXPECT_THAT(err_, Not(HasSubstr("the job goes on")));
}

TEST_F(Follow, Timeout_WhileTheLastMetricsComeIn_IsTheJobsEnd) {
  server_.jobs.points = 1'000'000;
  server_.jobs.record_breaks = 1'000'000;
  FollowOptions options;
  options.timeout = absl::Seconds(2);
  EXPECT_EQ(Run([&] { return FollowJob(session_, Running(), options); }),
            kExitOk);
  EXPECT_THAT(out_.str(), HasSubstr("SUCCEEDED j-1"));
  EXPECT_THAT(err_, Not(HasSubstr("the job goes on")));
}

TEST_F(Follow, SeveralJobs_OneRefusalKeepsNoneFromItsTurn) {
  const std::vector<std::string> jobs = {"j-none", "j-1", "j-none"};
  const struct {
    std::string verb;
    std::function<int()> run;
    std::string says;
  } cases[] = {
      {"cancel", [&] { return Cancel(session_, jobs, ""); }, "CANCELLING"},
      {"resume", [&] { return Resume(session_, jobs); }, "QUEUED"},
      {"delete", [&] { return DeleteJobs(session_, jobs); }, "deleted"},
  };
  for (const auto& c : cases) {
    out_.str("");
    EXPECT_EQ(Run(c.run), kExitNotFound) << c.verb;
    EXPECT_EQ(out_.str(), "j-1 " + c.says + "\n");
    EXPECT_THAT(err_, testing::ContainsRegex("error: cannot .* job j-none\n"
                                             "(.*\n)*error: cannot "));
  }
}

TEST_F(Follow, SeveralJobs_NoCoordinator_IsSaidOnce) {
  session_.endpoint = "127.0.0.1:1";
  EXPECT_EQ(Run([&] {
              return DeleteJobs(session_, {"a", "b"});
            }),
            kExitUnavailable);
  EXPECT_EQ(err_.find("error: "), err_.rfind("error: "));
}

TEST_F(Follow, ForPrograms_TheJobOnceAndLinesOnStandardError) {
  session_.output.format = OutputFormat::kJson;
  EXPECT_EQ(Run([&] { return FollowJob(session_, Running(), {}); }), kExitOk);
  const auto job = nlohmann::json::parse(out_.str());
  EXPECT_EQ(job["state"], "JOB_STATE_SUCCEEDED");
  EXPECT_THAT(err_, HasSubstr("step 5/"));
  EXPECT_THAT(err_, HasSubstr("SUCCEEDED j-1\n"));
  out_.str("");
  server_.jobs.watch_breaks = 1'000'000;
  EXPECT_EQ(Run([&] { return Wait(session_, "j-1", absl::ZeroDuration()); }),
            kExitJobNotFinished);
  EXPECT_EQ(nlohmann::json::parse(out_.str())["state"], "JOB_STATE_RUNNING");
}

TEST_F(Follow, ForPrograms_EachChangedJobIsARecord) {
  for (const auto& [format, expected] :
       {std::pair(OutputFormat::kJson, "{\"jobId\":\"j-1\","),
        {OutputFormat::kYaml, "---\njobId: \"j-1\"\n"},
        {OutputFormat::kName, "j-1\nj-1\n"}}) {
    out_.str("");
    session_.output.format = format;
    EXPECT_EQ(Run([&] { return Cancel(session_, {"j-1"}, ""); }), kExitOk);
    EXPECT_EQ(Run([&] { return Resume(session_, {"j-1"}); }), kExitOk);
    EXPECT_THAT(out_.str(), testing::StartsWith(expected));
    EXPECT_EQ(Run([&] { return DeleteJobs(session_, {"j-1"}); }), kExitOk);
    EXPECT_THAT(out_.str(), Not(HasSubstr("deleted")));
  }
}

TEST_F(Follow, Wide_IsForPeople) {
  session_.output.format = OutputFormat::kWide;
  EXPECT_EQ(Run([&] { return Logs(session_, {.job = "j-1"}); }), kExitOk);
  EXPECT_EQ(Run([&] { return Events(session_, {.job = "j-1"}); }), kExitOk);
  EXPECT_THAT(out_.str(), Not(HasSubstr("{")));
}

TEST_F(Follow, Metrics_FormatIsTheSessionsAndThinningIsSaid) {
  server_.jobs.answer_holds = 3;
  session_.output.format = OutputFormat::kJson;
  const auto metrics = [&](const MetricsOptions& options) {
    out_.str("");
    return Run([&]() -> absl::StatusOr<int> {
      const absl::Status status = Metrics(session_, options);
      if (!status.ok()) return status;
      return kExitOk;
    });
  };
  metrics({.job = "j-1", .format = ""});
  EXPECT_EQ(nlohmann::json::parse(out_.str())["points"].size(), 3u);
  EXPECT_THAT(err_, HasSubstr("note: 3 of 5 logged steps"));
  metrics({.job = "j-1", .format = "csv", .max_points = 2});
  EXPECT_THAT(out_.str(), testing::StartsWith("step,"));
  EXPECT_EQ(err_, "");
  server_.jobs.answer_holds = 5;
  metrics({.job = "j-1", .format = "table"});
  EXPECT_THAT(out_.str(), HasSubstr("GRAD NORM"));
  EXPECT_EQ(err_, "");
}

TEST_F(Follow, PlotWatch_SaysThatTheCoordinatorIsAway) {
  session_.output.terminal.out = true;
  server_.jobs.watch_breaks = 2;
  EXPECT_EQ(Run([&]() -> absl::StatusOr<int> {
              const absl::Status status =
                  Plot(session_, {.job = "j-1", .watch = true});
              if (!status.ok()) return status;
              return kExitOk;
            }),
            kExitOk);
  EXPECT_THAT(err_, HasSubstr(kAwayNote));
  EXPECT_THAT(err_, HasSubstr(kBackNote));
}

TEST_F(Follow, Version_ServerThatDoesNotSay_IsNoError) {
  EXPECT_TRUE(Version(session_).ok());
  EXPECT_THAT(out_.str(), testing::ContainsRegex("client +[0-9.]+\n"));
  EXPECT_THAT(out_.str(), HasSubstr("coordinator  unknown: "));
}

}  // namespace
}  // namespace qlora::client
