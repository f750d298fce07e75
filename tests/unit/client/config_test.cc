#include "client/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "client/errors.h"

namespace qlora::client {
namespace {

using testing::HasSubstr;

TEST(ParseConfig, WhatFormatConfigWrote_ComesBack) {
  Config config;
  config.current = "lab";
  config.contexts["lab"] = {"10.0.0.5:7070", "", ""};
  config.contexts["local"] = {"127.0.0.1:7070", "/state/with: colon", "lab"};
  const auto parsed = ParseConfig(FormatConfig(config), "f");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->current, "lab");
  ASSERT_EQ(parsed->contexts.size(), 2u);
  EXPECT_EQ(parsed->contexts.at("lab").endpoint, "10.0.0.5:7070");
  EXPECT_EQ(parsed->contexts.at("local").data_dir, "/state/with: colon");
}

TEST(ParseConfig, Empty_IsEmpty) {
  const auto parsed = ParseConfig("", "f");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->contexts.empty());
}

TEST(ParseConfig, Mistakes_NameFileLineAndColumn) {
  const struct {
    const char* yaml;
    const char* expected;
  } kCases[] = {
      {"curent: a\n", "f:1:1: unknown key curent"},
      {"contexts:\n  a: {endpont: x}\n", "f:2:7: unknown key endpont"},
      {"contexts:\n  a: {}\n", "f:2:6: context a has no endpoint"},
      {"contexts:\n  a: 1\n", "f:2:6: context a is no mapping"},
      {"[1, 2]\n", "f:1:1: no mapping"},
      {"a: [1\n", "f:2:1"},
      {"current: [a]\n", "f:1:1: current is no text"},
  };
  for (const auto& c : kCases) {
    const auto parsed = ParseConfig(c.yaml, "f");
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(c.expected));
    EXPECT_EQ(ExitCodeFor(parsed.status()), kExitValidation);
  }
}

TEST(ResolveEndpoint, FlagOverEnvironmentOverFile) {
  Config config;
  config.current = "a";
  config.contexts["a"] = {"a:1", "", ""};
  config.contexts["b"] = {"b:1", "", ""};
  EXPECT_EQ(*ResolveEndpoint({"flag:1", "b", "env:1"}, config), "flag:1");
  EXPECT_EQ(*ResolveEndpoint({"", "b", "env:1"}, config), "b:1");
  EXPECT_EQ(*ResolveEndpoint({"", "", "env:1"}, config), "env:1");
  EXPECT_EQ(*ResolveEndpoint({"", "", ""}, config), "a:1");
  EXPECT_EQ(*ResolveEndpoint({"", "", ""}, Config()), kDefaultEndpoint);
}

TEST(ResolveEndpoint, UnknownContext_NotFoundWithHint) {
  const auto endpoint = ResolveEndpoint({"", "nope", ""}, Config());
  EXPECT_EQ(ExitCodeFor(endpoint.status()), kExitNotFound);
  EXPECT_THAT(FormatError(endpoint.status()),
              HasSubstr("hint: qloractl context list"));
}

TEST(ParseEndpoint, HostAndPort_WithOrWithoutScheme) {
  for (const char* text : {"h:1", "http://h:1", "http://h:1/", "h:1/"}) {
    EXPECT_EQ(*ParseEndpoint(text, "--endpoint"), "h:1") << text;
  }
  EXPECT_EQ(*ParseEndpoint("[::1]:7070", "x"), "[::1]:7070");
}

TEST(ParseEndpoint, AnythingElse_NamesFlagAndForm) {
  for (const char* text : {"h", "h:", ":1", "h:x", "h:0", "h:70000",
                           "ftp://h:1", "h:1/path", "::1:7070"}) {
    const absl::Status status = ParseEndpoint(text, "--endpoint").status();
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << text;
    EXPECT_THAT(
        std::string(status.message()),
        HasSubstr(std::string("--endpoint ") + text + ": must be HOST:PORT"));
  }
  EXPECT_THAT(std::string(ParseEndpoint("https://h:1", "-").status().message()),
              HasSubstr("there is no TLS yet"));
}

TEST(LocalContext, StartAndStop_LeaveTheOneBeforeCurrent) {
  Config config;
  config.current = "lab";
  config.contexts["lab"] = {"h:1", "", ""};
  UseLocalContext(config, "127.0.0.1:1", "/a");
  EXPECT_EQ(UseLocalContext(config, "127.0.0.1:2", "/a"), "local");
  EXPECT_EQ(config.current, "local");
  EXPECT_EQ(ParseConfig(FormatConfig(config), "f")->contexts["local"].previous,
            "lab");
  EXPECT_EQ(DropLocalContext(config, "/another"), "");
  EXPECT_EQ(DropLocalContext(config, "/a"), "local");
  EXPECT_EQ(config.current, "lab");
  EXPECT_EQ(FormatConfig(config).find("local"), std::string::npos);
}

TEST(LocalContext, OtherChosenMeanwhile_Stays) {
  Config config;
  UseLocalContext(config, "127.0.0.1:1", "/a");
  config.contexts["lab"] = {"h:1", "", ""};
  config.current = "lab";
  EXPECT_EQ(DropLocalContext(config, "/a"), "local");
  EXPECT_EQ(config.current, "lab");
}

TEST(LocalContext, SecondInstance_HasANameOfItsOwn) {
  Config config;
  config.current = "lab";
  config.contexts["lab"] = {"h:1", "", ""};
  EXPECT_EQ(UseLocalContext(config, "127.0.0.1:1", "/a"), "local");
  EXPECT_EQ(UseLocalContext(config, "127.0.0.1:2", "/b/My Data"),
            "local-my-data");
  EXPECT_EQ(UseLocalContext(config, "127.0.0.1:3", "/c/my-data"),
            "local-my-data-2");
  EXPECT_EQ(config.contexts["local"].endpoint, "127.0.0.1:1");
  EXPECT_EQ(config.current, "local-my-data-2");
  // Out of order: what the third was to come back to is gone before it.
  EXPECT_EQ(DropLocalContext(config, "/b/My Data"), "local-my-data");
  EXPECT_EQ(config.current, "local-my-data-2");
  EXPECT_EQ(DropLocalContext(config, "/c/my-data"), "local-my-data-2");
  EXPECT_EQ(config.current, "local");
  EXPECT_EQ(DropLocalContext(config, "/a"), "local");
  EXPECT_EQ(config.current, "lab");
}

TEST(LocalContext, UsersOwnContextLocal_IsNotOverwritten) {
  Config config;
  config.contexts["local"] = {"h:1", "", ""};
  EXPECT_EQ(UseLocalContext(config, "127.0.0.1:1", "/a"), "local-a");
  EXPECT_EQ(config.contexts["local"].endpoint, "h:1");
}

class Directories : public testing::Test {
 protected:
  void TearDown() override {
    ::setenv("HOME", "/root", 1);
    ::unsetenv("XDG_CONFIG_HOME");
    ::unsetenv("XDG_STATE_HOME");
  }
};

TEST_F(Directories, XdgOverHome) {
  ::setenv("HOME", "/h", 1);
  ::unsetenv("XDG_CONFIG_HOME");
  ::unsetenv("XDG_STATE_HOME");
  EXPECT_EQ(*ConfigPath(), "/h/.config/qlora/config.yaml");
  EXPECT_EQ(*DefaultLocalDirectory(), "/h/.local/state/qlora/local");
  ::setenv("XDG_CONFIG_HOME", "/c", 1);
  ::setenv("XDG_STATE_HOME", "relative is ignored", 1);
  EXPECT_EQ(*ConfigPath(), "/c/qlora/config.yaml");
  EXPECT_EQ(*DefaultLocalDirectory(), "/h/.local/state/qlora/local");
}

TEST_F(Directories, NoHome_SaysSo) {
  ::unsetenv("HOME");
  ::unsetenv("XDG_CONFIG_HOME");
  EXPECT_THAT(std::string(ConfigPath().status().message()),
              HasSubstr("neither XDG_CONFIG_HOME nor HOME is set"));
}

}  // namespace
}  // namespace qlora::client
