#include "client/cli.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "client/errors.h"
#include "common/base/files.h"

namespace qlora::client {
namespace {

using testing::HasSubstr;

// What scripts rely on. After a deliberate change:
//   QLORA_UPDATE_GOLDEN=1 build/dev/bin/client_test
//   --gtest_filter='ListFlags.*'
TEST(ListFlags, Golden_Unchanged) {
  const std::string path = QLORA_SOURCE_DIR "/tests/golden/cli.txt";
  Cli cli;
  const std::string flags = ListFlags(cli.app());
  if (std::getenv("QLORA_UPDATE_GOLDEN") != nullptr) {
    ASSERT_TRUE(WriteFileAtomically(path, flags).ok());
  }
  const auto golden = ReadFile(path);
  ASSERT_TRUE(golden.ok()) << golden.status();
  EXPECT_EQ(flags, *golden);
}

TEST(Completion, EachShell_KnowsVerbsAndFlags) {
  Cli cli;
  for (const char* shell : {"bash", "zsh"}) {
    const std::string script = Completion(cli.app(), shell);
    EXPECT_THAT(script, HasSubstr("\"qloractl local\") offers=\"start "));
    EXPECT_THAT(script, HasSubstr("--cpu-ranks"));
  }
  const std::string fish = Completion(cli.app(), "fish");
  EXPECT_THAT(fish, HasSubstr("'__qloractl_at qloractl local' -f -a 'start "));
  EXPECT_THAT(fish,
              HasSubstr("'__qloractl_at qloractl submit' -s f -l file\n"));
}

// What the command prints that it does not understand; empty if it does.
std::string Complaint(const std::string& line) {
  Cli cli;
  try {
    cli.app().parse(line, /*program_name_included=*/true);
  } catch (const CLI::ParseError& e) {
    return e.what();
  }
  return "";
}

TEST(Cli, NumbersOutOfBounds_NameFlagBoundsAndValue) {
  EXPECT_EQ(Complaint("qloractl generate --job j --temperature -1 x"),
            "--temperature: must be 0 to 100, not -1");
  EXPECT_EQ(Complaint("qloractl generate --job j --temperature nan x"),
            "--temperature: must be 0 to 100, not nan");
  EXPECT_EQ(Complaint("qloractl generate --job j --top-p 1.5 x"),
            "--top-p: must be 0 to 1, not 1.5");
  EXPECT_EQ(Complaint("qloractl generate --job j --max-new-tokens 0 x"),
            "--max-new-tokens: must be 1 to 1048576, not 0");
  EXPECT_EQ(Complaint("qloractl list --limit -3"),
            "--limit: must be 0 or more, not -3");
  EXPECT_EQ(Complaint("qloractl wait j --timeout soon"),
            "--timeout: must be a time such as 90s, 5m or 1h30m, not soon");
  EXPECT_NE(Complaint("qloractl wait j --timeout -5s"), "");
  EXPECT_NE(Complaint("qloractl wait j --timeout nan"), "");
}

TEST(AddTimeout, PlainSecondsAndUnits) {
  for (const auto& [text, expected] : {std::pair("7", absl::Seconds(7)),
                                       {"0.5", absl::Milliseconds(500)},
                                       {"1h30m", absl::Minutes(90)},
                                       {"0", absl::ZeroDuration()}}) {
    CLI::App app;
    absl::Duration timeout;
    AddTimeout(&app, &timeout, "");
    app.parse(std::string("--timeout ") + text);
    EXPECT_EQ(timeout, expected) << text;
  }
}

struct Ran {
  int code;
  std::string out;
  std::string err;
};
Ran RunLine(const std::vector<const char*>& line) {
  std::vector<char*> argv;
  for (const char* word : line) argv.push_back(const_cast<char*>(word));
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Ran ran;
  ran.code = RunCli(static_cast<int>(argv.size()), argv.data());
  ran.err = testing::internal::GetCapturedStderr();
  ran.out = testing::internal::GetCapturedStdout();
  return ran;
}

TEST(RunCli, WrongWords_AreAnsweredWithTheNearest) {
  const struct {
    std::vector<const char*> line;
    const char* says;
  } cases[] = {
      {{"qloractl", "sumbit", "-f", "x"},
       "error: unknown command sumbit; did you mean submit?\n"
       "hint: qloractl --help\n"},
      {{"qloractl", "local", "strat"},
       "error: unknown command strat; did you mean start?\n"
       "hint: qloractl local --help\n"},
      {{"qloractl", "submit", "--folow"},
       "error: unknown flag --folow; did you mean --follow?\n"},
      {{"qloractl", "list", "--endpiont=h:1"}, "did you mean --endpoint?\n"},
      {{"qloractl", "xyzzy"}, "error: unknown command xyzzy\n"},
      {{"qloractl", "get", "a", "b"}, "error: unexpected argument b\n"},
      {{"qloractl", "node"}, "error: give a command: list, remove\n"},
  };
  for (const auto& [line, says] : cases) {
    const Ran ran = RunLine(line);
    EXPECT_EQ(ran.code, kExitUsage);
    EXPECT_THAT(ran.err, HasSubstr(says));
  }
}

// Nothing that the environment says of the configuration.
class Homeless : public testing::Test {
 protected:
  Homeless() {
    for (auto& [name, before] : variables_) {
      if (const char* value = std::getenv(name)) before = value;
      ::unsetenv(name);
    }
  }
  ~Homeless() override {
    for (const auto& [name, before] : variables_) {
      ::unsetenv(name);
      if (before) ::setenv(name, before->c_str(), 1);
    }
  }

 private:
  std::map<const char*, std::optional<std::string>> variables_ = {
      {"HOME", {}}, {"XDG_CONFIG_HOME", {}}, {"QLORA_ENDPOINT", {}}};
};

TEST_F(Homeless, OnlyWhatNeedsThePath_Fails) {
  EXPECT_EQ(RunLine({"qloractl", "explain", "lora.rank"}).code, kExitOk);
  EXPECT_EQ(RunLine({"qloractl", "context", "list"}).code, kExitOk);
  EXPECT_THAT(RunLine({"qloractl", "version", "--endpoint", "127.0.0.1:1"}).out,
              HasSubstr("127.0.0.1:1"));
  const std::string data = testing::TempDir() + "/never-made";
  for (const std::vector<const char*>& line :
       {std::vector<const char*>{"qloractl", "context", "set", "a", "h:1"},
        {"qloractl", "local", "start", "--data-dir", data.c_str()}}) {
    const Ran ran = RunLine(line);
    EXPECT_EQ(ran.code, kExitConflict);
    EXPECT_THAT(ran.err, HasSubstr("neither XDG_CONFIG_HOME nor HOME is set"));
  }
  EXPECT_FALSE(std::filesystem::exists(data));
}

TEST_F(Homeless, CurrentContextIsMissing_ContextVerbsMendIt) {
  std::string home = testing::TempDir() + "/config-XXXXXX";
  ASSERT_NE(::mkdtemp(home.data()), nullptr);
  ::setenv("XDG_CONFIG_HOME", home.c_str(), 1);
  ASSERT_TRUE(CreateDirectories(home + "/qlora").ok());
  ASSERT_TRUE(WriteFileAtomically(home + "/qlora/config.yaml",
                                  "current: gone\ncontexts:\n"
                                  "  lab: {endpoint: \"127.0.0.1:1\"}\n")
                  .ok());
  const Ran list = RunLine({"qloractl", "list"});
  EXPECT_EQ(list.code, kExitNotFound);
  EXPECT_EQ(list.err, "error: no context gone\nhint: qloractl context list\n");
  EXPECT_THAT(RunLine({"qloractl", "context", "list"}).out, HasSubstr("lab"));
  EXPECT_EQ(RunLine({"qloractl", "--context", "no", "local", "status"}).code,
            kExitNotFound);
  EXPECT_EQ(RunLine({"qloractl", "context", "use", "lab"}).code, kExitOk);
  EXPECT_EQ(RunLine({"qloractl", "list"}).code, kExitUnavailable);
}

TEST(RunCli, WorkingDirectoryIsGone_IsAnError) {
  const std::string before = std::filesystem::current_path().string();
  std::string gone = testing::TempDir() + "/gone-XXXXXX";
  ASSERT_NE(::mkdtemp(gone.data()), nullptr);
  ASSERT_EQ(::chdir(gone.c_str()), 0);
  ASSERT_EQ(::rmdir(gone.c_str()), 0);
  const Ran ran = RunLine({"qloractl", "local", "start", "--data-dir", "/tmp"});
  ASSERT_EQ(::chdir(before.c_str()), 0);
  EXPECT_EQ(ran.code, kExitError);
  EXPECT_THAT(ran.err, HasSubstr("error: filesystem error: cannot get current "
                                 "path: No such file or directory"));
}

TEST(RunCli, LocalStart_PathThatIsNotUtf8_IsRefusedBeforeAnythingStarts) {
  std::string root = testing::TempDir() + "/root-\xff-XXXXXX";
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  const std::string data = root + "/data";
  const std::string plain = testing::TempDir() + "/never-made";
  for (const auto& [flags, says] :
       {std::pair(std::vector<const char*>{"--model-root", root.c_str(),
                                           "--data-dir", plain.c_str()},
                  "cause: model root "),
        {{"--data-dir", data.c_str()}, "cause: data directory "}}) {
    std::vector<const char*> line = {"qloractl", "local", "start"};
    line.insert(line.end(), flags.begin(), flags.end());
    const Ran ran = RunLine(line);
    EXPECT_EQ(ran.code, kExitUsage);
    EXPECT_THAT(ran.err, HasSubstr("error: cannot start a local coordinator"));
    EXPECT_THAT(ran.err, HasSubstr(says));
    EXPECT_THAT(ran.err, HasSubstr("?-"));
  }
  EXPECT_FALSE(std::filesystem::exists(plain));
  EXPECT_FALSE(std::filesystem::exists(data));
  ::rmdir(root.c_str());
}

int Parse(const std::string& line, bool* has_action) {
  Cli cli;
  try {
    cli.app().parse(line, /*program_name_included=*/true);
  } catch (const CLI::ParseError& e) {
    return e.get_exit_code();
  }
  *has_action = cli.chosen() != nullptr;
  return 0;
}

TEST(Cli, EveryVerb_ParsesAndHasAnAction) {
  for (const char* line : {
           "qloractl submit -f job.yaml --set a=1 --set b=2 --follow",
           "qloractl submit -f - --detach --name x",
           "qloractl list -o json --state running --label team=a --limit 5",
           "qloractl --endpoint h:1 get j-1",
           "qloractl get j-1 --endpoint h:1 -o yaml",
           "qloractl describe @last",
           "qloractl logs -f j-1 --rank 1 --tail 10",
           "qloractl events -f j-1",
           "qloractl metrics j-1 -o csv",
           "qloractl plot -w j-1",
           "qloractl cancel a b --reason r",
           "qloractl resume a b",
           "qloractl delete a b",
           "qloractl wait j-1 --timeout 5m",
           "qloractl checkpoint list j-1",
           "qloractl adapter list",
           "qloractl adapter pull j-1 --to d --force",
           "qloractl adapter verify j-1",
           "qloractl generate --job j-1 --compare --chat hello there",
           "qloractl generate --model m --temperature 0.7 --top-p 0.9 --seed 3",
           "qloractl model import d --name n --upload",
           "qloractl model list",
           "qloractl model inspect n",
           "qloractl model delete n",
           "qloractl model pull j-1 --to d",
           "qloractl dataset push f --name n",
           "qloractl dataset list",
           "qloractl dataset inspect n",
           "qloractl dataset delete n",
           "qloractl node list -o wide",
           "qloractl node remove n",
           "qloractl plan -f job.yaml",
           "qloractl explain",
           "qloractl explain lora.rank",
           "qloractl init --name n job.yaml",
           "qloractl context list",
           "qloractl context use n",
           "qloractl context set n h:1",
           "qloractl context delete n",
           "qloractl local start --cpu-ranks 2 --model-root a --model-root b",
           "qloractl local status",
           "qloractl local stop --timeout 5",
           "qloractl local logs -f",
           "qloractl version",
           "qloractl completion bash",
           "qloractl completion fish",
           "qloractl logs -f j-1 --timeout 1h",
           "qloractl events -f j-1 --timeout 30",
           "qloractl submit -f job.yaml --follow --timeout 5m",
           "qloractl dataset push f --replace --allow-bad",
       }) {
    bool has_action = false;
    EXPECT_EQ(Parse(line, &has_action), 0) << line;
    EXPECT_TRUE(has_action) << line;
  }
}

TEST(Cli, WrongLines_AreRefused) {
  for (const char* line : {
           "qloractl",
           "qloractl submit",
           "qloractl submit -f a --follow --detach",
           "qloractl get",
           "qloractl get a b",
           "qloractl resume",
           "qloractl adapter pull j-1",
           "qloractl generate --job a --model b x",
           "qloractl generate --job a --compare --no-adapter x",
           "qloractl local start --cpu-ranks 0",
           "qloractl completion tcsh",
           "qloractl logs j-1 --timeout 1h",
           "qloractl frobnicate",
           "qloractl list --frobnicate",
       }) {
    bool has_action = false;
    EXPECT_NE(Parse(line, &has_action), 0) << line;
  }
}

}  // namespace
}  // namespace qlora::client
