#include "client/follower.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "client/connection.h"
#include "tests/unit/client/fake_server.h"

namespace qlora::client {
namespace {

struct Seen {
  std::vector<int64_t> steps;
  v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
  bool was_away = false;
  absl::Status error;
  bool done = false;
};

Seen FollowToTheEnd(JobFollower& follower) {
  Seen seen;
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (!seen.done && absl::Now() < end) {
    const JobFollower::Update update = follower.Next(absl::Milliseconds(100));
    if (update.job) seen.state = update.job->state();
    for (const auto& point : update.points) seen.steps.push_back(point.step());
    seen.was_away = seen.was_away || !update.connected;
    const bool early = !update.connected && !update.done;
    EXPECT_TRUE(!early || (update.points.empty() && update.events.empty()));
    seen.error = update.error;
    seen.done = update.done;
  }
  return seen;
}

TEST(JobFollower, JobEnds_AllPointsCame) {
  FakeServer server;
  Connection connection(server.endpoint);
  JobFollower follower(connection, "j-1", "");
  const Seen seen = FollowToTheEnd(follower);
  EXPECT_TRUE(seen.done);
  EXPECT_EQ(seen.state, v1::JOB_STATE_SUCCEEDED);
  EXPECT_THAT(seen.steps, testing::ElementsAre(1, 2, 3, 4, 5));
}

TEST(JobFollower, StreamsBreak_NothingIsMissedOrRepeated) {
  FakeServer server;
  server.jobs.watch_breaks = 2;
  server.jobs.record_breaks = 2;
  Connection connection(server.endpoint);
  JobFollower follower(connection, "j-1", "");
  const Seen seen = FollowToTheEnd(follower);
  EXPECT_TRUE(seen.done);
  EXPECT_TRUE(seen.was_away);
  EXPECT_EQ(seen.state, v1::JOB_STATE_SUCCEEDED);
  EXPECT_THAT(seen.steps, testing::ElementsAre(1, 2, 3, 4, 5));
}

TEST(JobFollower, MetricsFail_TheOutcomeIsTheJobs) {
  FakeServer server;
  server.jobs.metrics_readable = false;
  server.jobs.watch_breaks = 1;
  Connection connection(server.endpoint);
  JobFollower follower(connection, "j-1", "");
  const Seen seen = FollowToTheEnd(follower);
  EXPECT_TRUE(seen.done);
  EXPECT_EQ(seen.state, v1::JOB_STATE_SUCCEEDED);
  EXPECT_TRUE(seen.error.ok()) << seen.error;
}

// What AddressSanitizer looks at: contexts that go while they are cancelled.
TEST(JobFollower, DestroyedWhileStreamsEnd_CancelsNoneThatIsGone) {
  FakeServer server;
  Connection connection(server.endpoint);
  for (int i = 0; i < 100; ++i) {
    server.jobs.watch_breaks = i % 2;
    server.jobs.record_breaks = i % 3;
    JobFollower follower(connection, "j-1", "");
    follower.Next(absl::Microseconds(50 * i));
  }
}

TEST(JobFollower, NoCoordinator_EndsWhenDestroyed) {
  Connection connection("127.0.0.1:1");
  JobFollower follower(connection, "j-1", "");
  const JobFollower::Update update = follower.Next(absl::Milliseconds(100));
  EXPECT_FALSE(update.done);
}

TEST(Connection, AnswerLost_TriesAgainWithTheSameRequestId) {
  FakeServer server;
  server.jobs.LoseResponses(2);
  Connection connection(server.endpoint);
  v1::CancelJobRequest request;
  request.set_request_id(NewRequestId());
  const auto job = connection.Call(connection.jobs(),
                                   &v1::JobService::Stub::CancelJob, request);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(server.jobs.request_ids(),
              testing::ElementsAre(request.request_id(), request.request_id(),
                                   request.request_id()));
}

TEST(Connection, NobodyListens_UnavailableWithHint) {
  Connection connection("127.0.0.1:1");
  const auto job =
      connection.Call(connection.jobs(), &v1::JobService::Stub::CancelJob,
                      v1::CancelJobRequest());
  EXPECT_EQ(ExitCodeFor(job.status()), kExitUnavailable);
  EXPECT_THAT(FormatError(job.status()),
              testing::AllOf(
                  testing::HasSubstr("error: cannot reach the coordinator at "
                                     "127.0.0.1:1\ncause: "),
                  testing::HasSubstr("hint: qloractl local start")));
}

TEST(NewRequestId, IsAUuidOfVersionFour) {
  const std::string id = NewRequestId();
  EXPECT_THAT(id, testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-"
                                        "[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
  EXPECT_NE(id, NewRequestId());
}

}  // namespace
}  // namespace qlora::client
