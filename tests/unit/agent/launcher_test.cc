#include "worker/agent/launcher.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::agent {
namespace {

using ::testing::HasSubstr;
using Type = LauncherReply::Type;

// True once no process of that id exists, within 5 s.
bool Disappears(pid_t pid) {
  for (int i = 0; i < 500; ++i) {
    if (::kill(pid, 0) != 0) return true;
    std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
    std::string stat;
    std::getline(in, stat);
    const size_t end = stat.rfind(')');
    if (end != std::string::npos && stat[end + 2] == 'Z') return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

std::string ReadAll(int fd) {
  std::string text;
  char buffer[256];
  ssize_t n;
  while ((n = ::read(fd, buffer, sizeof(buffer))) > 0) {
    text.append(buffer, static_cast<size_t>(n));
  }
  return text;
}

class LauncherTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto launcher = Launcher::Start();
    ASSERT_TRUE(launcher.ok()) << launcher.status();
    launcher_ = std::make_unique<Launcher>(*std::move(launcher));
  }
  void TearDown() override {
    const pid_t pid = launcher_ == nullptr ? 0 : launcher_->pid();
    launcher_.reset();
    if (pid != 0) ::waitpid(pid, nullptr, 0);
  }

  // Runs a shell script; its standard output comes through out_.
  void Spawn(uint64_t id, const std::string& script,
             std::vector<int> cores = {}) {
    SpawnProgram(id, {"/bin/sh", "-c", script}, std::move(cores));
  }
  void SpawnProgram(uint64_t id, std::vector<std::string> argv,
                    std::vector<int> cores) {
    int sockets[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    frames_.Reset(sockets[0]);
    int pipes[2];
    ASSERT_EQ(::pipe2(pipes, O_CLOEXEC), 0);
    out_.Reset(pipes[0]);
    SpawnFds fds;
    fds.frames.Reset(sockets[1]);
    fds.stdout_pipe.Reset(pipes[1]);
    fds.stderr_pipe.Reset(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    SpawnRequest request;
    request.id = id;
    request.argv = std::move(argv);
    request.environment = {"PATH=/usr/bin:/bin", "MARK=1"};
    request.directory = "/tmp";
    request.cores = std::move(cores);
    request.group = "test-" + std::to_string(::getpid());
    ASSERT_TRUE(launcher_->Spawn(request, std::move(fds)).ok());
  }
  LauncherReply Expect(Type type) {
    const auto reply = launcher_->Read();
    EXPECT_TRUE(reply.ok()) << reply.status();
    if (!reply.ok()) return {};
    EXPECT_EQ(static_cast<int>(reply->type), static_cast<int>(type))
        << reply->error;
    return *reply;
  }

  std::unique_ptr<Launcher> launcher_;
  UniqueFd frames_;
  UniqueFd out_;
};

TEST_F(LauncherTest, ExitCode_IsReported) {
  Spawn(1, "exit 13");
  Expect(Type::kSpawned);
  const LauncherReply exited = Expect(Type::kExited);
  EXPECT_EQ(exited.id, 1u);
  EXPECT_EQ(exited.exit_code, 13);
  EXPECT_EQ(exited.signal, 0);
}

TEST_F(LauncherTest, Signal_IsReported) {
  Spawn(1, "kill -SEGV $$");
  Expect(Type::kSpawned);
  EXPECT_EQ(Expect(Type::kExited).signal, SIGSEGV);
}

TEST_F(LauncherTest, Kill_EndsTheWholeGroup) {
  Spawn(1, "sleep 100 & echo $!; wait");
  Expect(Type::kSpawned);
  char line[32] = {};
  ASSERT_GT(::read(out_.get(), line, sizeof(line) - 1), 0);
  ASSERT_TRUE(launcher_->Kill(1, SIGKILL).ok());
  const LauncherReply exited = Expect(Type::kExited);
  EXPECT_EQ(exited.signal, SIGKILL);
  EXPECT_FALSE(exited.out_of_memory);
  EXPECT_TRUE(Disappears(std::atoi(line)));
}

TEST_F(LauncherTest, MissingProgram_IsReported) {
  SpawnProgram(1, {"/nonexistent/trainer"}, {});
  const LauncherReply failed = Expect(Type::kFailed);
  EXPECT_THAT(failed.error, HasSubstr("/nonexistent/trainer"));
  EXPECT_THAT(failed.error, HasSubstr("No such file"));
}

TEST_F(LauncherTest, Child_HasWhatItNeedsAndNothingElse) {
  ::setenv("QLORA_SECRET", "x", 1);
  Spawn(1,
        "ls /proc/$$/fd | tr '\\n' ' '; env | sort | tr '\\n' ' '; pwd; "
        "readlink /proc/self/fd/0; ps -o sid= -p $$ | tr -d ' '; echo $$");
  Expect(Type::kSpawned);
  const std::string text = ReadAll(out_.get());
  Expect(Type::kExited);
  // 0 to 3; the shell may have one of its own above 9.
  EXPECT_EQ(text.rfind("0 1 2 3 ", 0), 0u) << text;
  EXPECT_THAT(text, HasSubstr("MARK=1"));
  EXPECT_EQ(text.find("QLORA_SECRET"), std::string::npos);
  EXPECT_THAT(text, HasSubstr("/tmp\n/dev/null\n"));
  // It leads a session of its own.
  std::istringstream tail(text.substr(text.find("/dev/null\n") + 10));
  std::string session, process;
  ASSERT_TRUE(tail >> session >> process) << text;
  EXPECT_EQ(session, process);
}

TEST_F(LauncherTest, Cores_AreBound) {
  cpu_set_t allowed;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  int core = 0;
  while (!CPU_ISSET(core, &allowed)) ++core;
  Spawn(1, "grep Cpus_allowed_list /proc/self/status", {core});
  Expect(Type::kSpawned);
  EXPECT_THAT(ReadAll(out_.get()),
              HasSubstr("\t" + std::to_string(core) + "\n"));
  Expect(Type::kExited);
}

// A child that left its session and lost its parent is still ours.
TEST_F(LauncherTest, DoubleForkedChild_DiesWithItsRank) {
  Spawn(1, "setsid sh -c 'sleep 100 & echo $!' ; exit 0");
  Expect(Type::kSpawned);
  char line[32] = {};
  ASSERT_GT(::read(out_.get(), line, sizeof(line) - 1), 0);
  Expect(Type::kExited);
  EXPECT_TRUE(Disappears(std::atoi(line)));
}

TEST_F(LauncherTest, SocketClosed_LauncherKillsAllAndExits) {
  Spawn(1, "echo $$; sleep 100");
  const pid_t child = Expect(Type::kSpawned).pid;
  const pid_t launcher = launcher_->pid();
  launcher_.reset();
  int status = 0;
  EXPECT_EQ(::waitpid(launcher, &status, 0), launcher);
  EXPECT_TRUE(Disappears(child));
}

TEST_F(LauncherTest, LauncherKilled_ChildDiesAndReadFails) {
  Spawn(1, "sleep 100");
  const pid_t child = Expect(Type::kSpawned).pid;
  ::kill(launcher_->pid(), SIGKILL);
  EXPECT_TRUE(absl::IsUnavailable(launcher_->Read().status()));
  EXPECT_TRUE(Disappears(child));
}

// An agent killed by -9 leaves nobody behind.
TEST(LauncherOrphans, AgentKilled_NothingIsLeft) {
  int pipes[2];
  ASSERT_EQ(::pipe(pipes), 0);
  const pid_t agent = ::fork();
  ASSERT_GE(agent, 0);
  if (agent == 0) {
    auto launcher = Launcher::Start();
    if (!launcher.ok()) ::_exit(1);
    SpawnFds fds;
    int sockets[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0) ::_exit(1);
    fds.frames.Reset(sockets[1]);
    fds.stdout_pipe.Reset(::open("/dev/null", O_WRONLY));
    fds.stderr_pipe.Reset(::open("/dev/null", O_WRONLY));
    SpawnRequest request;
    request.id = 1;
    request.argv = {"/bin/sleep", "100"};
    request.group = "orphans-" + std::to_string(::getpid());
    if (!launcher->Spawn(request, std::move(fds)).ok()) ::_exit(1);
    const auto reply = launcher->Read();
    const pid_t pids[2] = {launcher->pid(), reply.ok() ? reply->pid : 0};
    if (::write(pipes[1], pids, sizeof(pids)) != sizeof(pids)) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  pid_t pids[2] = {};
  ASSERT_EQ(::read(pipes[0], pids, sizeof(pids)),
            static_cast<ssize_t>(sizeof(pids)));
  ASSERT_GT(pids[1], 0);
  ::kill(agent, SIGKILL);
  ::waitpid(agent, nullptr, 0);
  EXPECT_TRUE(Disappears(pids[1]));
  EXPECT_TRUE(Disappears(pids[0]));
  ::close(pipes[0]);
  ::close(pipes[1]);
}

}  // namespace
}  // namespace qlora::agent
