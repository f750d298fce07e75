#include "client/local/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/types.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "common/base/files.h"

namespace qlora::client {
namespace {

// A log file of this test's own.
std::string TempFile(const std::string& name) {
  const std::string path =
      testing::TempDir() + "/" + std::to_string(::getpid()) + "-" + name;
  EXPECT_TRUE(RemoveRecursively(path).ok());
  return path;
}

absl::StatusOr<ProcessId> Shell(const std::string& script,
                                const std::string& log) {
  return Spawn({{"/bin/sh", "-c", script}, "/", log, false});
}

// Until the file has some content; false after ten seconds.
bool AwaitContent(const std::string& path, std::string* content) {
  for (int i = 0; i < 500; ++i) {
    const auto text = ReadFile(path);
    if (text.ok() && !text->empty() && text->back() == '\n') {
      *content = *text;
      return true;
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  return false;
}

TEST(Spawn, Runs_WithOutputInTheLog) {
  const std::string log = TempFile("run.log");
  const auto process = Shell("pwd; echo oops >&2; exec sleep 60", log);
  ASSERT_TRUE(process.ok()) << process.status();
  std::string text;
  ASSERT_TRUE(AwaitContent(log, &text));
  EXPECT_TRUE(IsAlive(*process));
  EXPECT_TRUE(StopProcess(*process, absl::Seconds(10)));
  EXPECT_FALSE(IsAlive(*process));
  EXPECT_EQ(*ReadFile(log), "/\noops\n");
}

TEST(Spawn, InheritsNoDescriptor) {
  const std::string path = TempFile("inherited.lock");
  // Without O_CLOEXEC, as from a shell: exec 9>file; flock 9.
  const int inherited = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_GE(inherited, 0);
  ASSERT_EQ(::flock(inherited, LOCK_EX), 0);
  const auto process = Spawn({{"/bin/sleep", "60"}, "/", "", false});
  ASSERT_TRUE(process.ok()) << process.status();
  ::close(inherited);
  const int again = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  EXPECT_EQ(::flock(again, LOCK_EX | LOCK_NB), 0);
  ::close(again);
  StopProcess(*process, absl::Seconds(10));
}

TEST(Spawn, NoSuchProgram_SaysWhich) {
  const auto process = Spawn({{"/no/such/program"}, "/", "", false});
  EXPECT_TRUE(absl::IsNotFound(process.status())) << process.status();
  EXPECT_NE(process.status().message().find("/no/such/program"),
            absl::string_view::npos);
}

TEST(StopProcess, IgnoresSigterm_IsKilled) {
  const std::string log = TempFile("stubborn.log");
  const auto process =
      Shell("trap '' TERM; echo ready; while :; do sleep 60; done", log);
  ASSERT_TRUE(process.ok());
  std::string text;
  ASSERT_TRUE(AwaitContent(log, &text));
  EXPECT_FALSE(StopProcess(*process, absl::Milliseconds(200)));
  EXPECT_FALSE(IsAlive(*process));
}

// Its pid may have been another's since, with a session of its own.
TEST(StopProcess, Gone_LeavesTheSessionOfItsPidAlone) {
  const std::string log = TempFile("session.log");
  const auto leader = Shell("sleep 60 & echo $!", log);
  ASSERT_TRUE(leader.ok());
  std::string text;
  ASSERT_TRUE(AwaitContent(log, &text));
  const pid_t other = std::stoi(text);
  EXPECT_TRUE(StopProcess(*leader, absl::Seconds(10)));
  const auto stat = ReadFile("/proc/" + std::to_string(other) + "/stat");
  ::kill(other, SIGKILL);
  ASSERT_TRUE(stat.ok()) << stat.status();
  EXPECT_EQ(stat->find(") Z "), std::string::npos) << *stat;
}

TEST(StopProcess, NeverStarted_TouchesNothing) {
  EXPECT_TRUE(StopProcess(ProcessId(), absl::Seconds(1)));
}

TEST(IsAlive, PidOfAnother_IsNotOurs) {
  ProcessId reused;
  reused.pid = ::getpid();
  reused.start_time = 1;
  EXPECT_FALSE(IsAlive(reused));
  // Must not end this test.
  EXPECT_TRUE(StopProcess(reused, absl::Seconds(1)));
}

TEST(IsAlive, EndedButNotReaped_IsGone) {
  const auto process = Shell("exit 3", TempFile("ended.log"));
  ASSERT_TRUE(process.ok());
  for (int i = 0; i < 500 && IsAlive(*process); ++i) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_FALSE(IsAlive(*process));
  EXPECT_TRUE(ReapIfEnded(*process));
}

}  // namespace
}  // namespace qlora::client
