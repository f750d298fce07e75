#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sstream>

#include "common/base/crc32c.h"
#include "common/daemon/address.h"
#include "common/daemon/command_line.h"
#include "common/daemon/monitoring_server.h"
#include "common/daemon/value_options.h"
#include "common/daemon/yaml_config.h"

namespace qlora {
namespace {

TEST(Crc32c, KnownValues) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("6789", Crc32c("12345")), 0xe3069283u);
}

TEST(Address, ParsesAndPrints) {
  EXPECT_EQ(ParseHostPort("127.0.0.1:70")->port, 70);
  EXPECT_EQ(ParseHostPort("[::1]:7070")->host, "::1");
  EXPECT_EQ(ParseHostPort("[::1]:7070")->ToString(), "[::1]:7070");
  for (const char* bad :
       {"", "localhost", ":70", "a:-1", "a:65536", "::1:70", "a:b"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseHostPort(bad).status())) << bad;
  }
}

TEST(Address, OnlyLoopbackIsAllowed) {
  EXPECT_TRUE(RequireLoopback("--listen", "127.0.0.1:0").ok());
  EXPECT_TRUE(RequireLoopback("--listen", "[::1]:0").ok());
  EXPECT_TRUE(RequireLoopback("--listen", "localhost:1").ok());
  const absl::Status refused = RequireLoopback("--listen", "0.0.0.0:7070");
  EXPECT_TRUE(absl::IsInvalidArgument(refused));
  EXPECT_NE(refused.message().find("TLS"), absl::string_view::npos);
  EXPECT_FALSE(RequireLoopback("--listen", "10.0.0.1:1").ok());
}

std::string Get(const std::string& address, const std::string& path) {
  const auto parsed = ParseHostPort(address);
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(parsed->port));
  ::inet_pton(AF_INET, parsed->host.c_str(), &to.sin_addr);
  EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  EXPECT_GT(::write(fd, request.data(), request.size()), 0);
  std::string answer;
  char buffer[4096];
  ssize_t n;
  while ((n = ::read(fd, buffer, sizeof(buffer))) > 0) {
    answer.append(buffer, static_cast<size_t>(n));
  }
  ::close(fd);
  return answer;
}

TEST(MonitoringServer, ServesMetricsHealthAndReadiness) {
  absl::Status ready = absl::UnavailableError("still starting");
  auto server = MonitoringServer::Start(
      {.listen = "127.0.0.1:0",
       .metrics = [] { return std::string("qlora_x 1\n"); },
       .ready = [&] { return ready; }});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string& address = (*server)->address();
  EXPECT_NE(Get(address, "/metrics").find("qlora_x 1\n"), std::string::npos);
  EXPECT_EQ(Get(address, "/healthz").rfind("HTTP/1.1 200", 0), 0u);
  const std::string unready = Get(address, "/readyz");
  EXPECT_EQ(unready.rfind("HTTP/1.1 503", 0), 0u);
  EXPECT_NE(unready.find("still starting"), std::string::npos);
  ready = absl::OkStatus();
  EXPECT_EQ(Get(address, "/readyz").rfind("HTTP/1.1 200", 0), 0u);
  EXPECT_NE(Get(address, "/other").find(" 404 "), std::string::npos);
}

TEST(MonitoringServer, PortTaken_SaysSo) {
  MonitoringServer::Options options;
  options.listen = "127.0.0.1:0";
  auto first = MonitoringServer::Start(options);
  ASSERT_TRUE(first.ok());
  options.listen = (*first)->address();
  auto second = MonitoringServer::Start(options);
  ASSERT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_NE(second.status().message().find("in use"), absl::string_view::npos)
      << second.status();
  EXPECT_NE(second.status().message().find("--metrics-listen"),
            absl::string_view::npos)
      << second.status();
}

std::vector<CLI::ConfigItem> Load(const std::string& yaml) {
  std::istringstream in(yaml);
  return YamlConfig({"data-dir", "model-root"}).from_config(in);
}

TEST(YamlConfig, ReadsScalarsAndLists) {
  const auto items = Load("data-dir: /x\nmodel-root: [/a, /b]\n");
  ASSERT_EQ(items.size(), 2u);
  EXPECT_EQ(items[0].inputs, std::vector<std::string>{"/x"});
  EXPECT_EQ(items[1].inputs, (std::vector<std::string>{"/a", "/b"}));
  EXPECT_TRUE(Load("").empty());
}

TEST(YamlConfig, UnknownKey_NamesPlaceAndSuggestion) {
  try {
    Load("data-dir: /x\ndata-dri: /y\n");
    FAIL();
  } catch (const CLI::Error& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("line 2, column 1"), std::string::npos) << what;
    EXPECT_NE(what.find("did you mean \"data-dir\""), std::string::npos);
  }
  EXPECT_THROW(Load("[1]"), CLI::Error);
  EXPECT_THROW(Load("data-dir: {a: b}"), CLI::Error);
  EXPECT_THROW(Load("data-dir: [\n"), CLI::Error);
}

// A configuration file that goes with the test.
class ConfigFile {
 public:
  explicit ConfigFile(const std::string& yaml) {
    const int fd = ::mkstemp(path_);
    EXPECT_EQ(::write(fd, yaml.data(), yaml.size()),
              static_cast<ssize_t>(yaml.size()));
    ::close(fd);
  }
  ~ConfigFile() { ::unlink(path_); }
  std::string path() const { return path_; }

 private:
  char path_[32] = "/tmp/qlora-config-XXXXXX";
};

TEST(YamlConfig, FlagsWinOverTheFile) {
  const ConfigFile file("data-dir: /file\nmodel-root: [/a, /b]\n");
  CLI::App app;
  std::string data_dir;
  std::vector<std::string> roots;
  app.add_option("--data-dir", data_dir);
  app.add_option("--model-root", roots);
  app.set_config("--config");
  app.config_formatter(std::make_shared<YamlConfig>(ConfigKeys(app)));
  app.parse("--config " + file.path() + " --data-dir /flag");
  EXPECT_EQ(data_dir, "/flag");
  EXPECT_EQ(roots, (std::vector<std::string>{"/a", "/b"}));
}

TEST(WithConfigFile, NamesTheFileThatSetTheFlag) {
  const ConfigFile file("data-dir: /file\nlease: 1s\n");
  CLI::App app;
  std::string data_dir, lease, lease_margin;
  app.add_option("--data-dir", data_dir);
  app.add_option("--lease", lease);
  app.add_option("--lease-margin", lease_margin);
  app.set_config("--config");
  app.config_formatter(std::make_shared<YamlConfig>(ConfigKeys(app)));
  app.parse("--config " + file.path() + " --data-dir /flag");
  for (const char* of_file : {"--lease 1s: no", "too long: --lease"}) {
    EXPECT_EQ(WithConfigFile(app, of_file), file.path() + ": " + of_file);
  }
  for (const char* other : {"--data-dir /flag: no", "--lease-margin: no", ""}) {
    EXPECT_EQ(WithConfigFile(app, other), other);
  }
}

TEST(WithConfigFile, WithoutOne_SaysNoMore) {
  CLI::App app;
  app.set_config("--config");
  app.parse("");
  EXPECT_EQ(WithConfigFile(app, "--lease: no"), "--lease: no");
}

TEST(DurationOption, EndlessAndNegativeTimes_AreRefused) {
  for (const char* text : {"inf", "-1s", "99999999999999999999h", "30"}) {
    CLI::App app;
    absl::Duration lease = absl::Seconds(30);
    AddDurationOption(app, "--lease", &lease, "help");
    EXPECT_THROW(app.parse(std::string("--lease=") + text),
                 CLI::ValidationError)
        << text;
  }
}

TEST(BytesOption, TakesWhatAJobFileTakes) {
  CLI::App app;
  int64_t limit = int64_t{64} << 30;
  const CLI::Option* option = AddBytesOption(app, "--limit", &limit, "help");
  EXPECT_EQ(option->get_description(), "help (default 64.0 GiB)");
  const std::vector<std::pair<std::string, int64_t>> sizes = {
      {"64.0 GiB", int64_t{64} << 30},
      {"1.5Ki", 1536},
      {"256MiB", 256 << 20},
      {"2 kB", 2000},
      {"7b", 7},
      {"0", 0}};
  for (const auto& [text, bytes] : sizes) {
    app.parse(std::vector<std::string>{"--limit=" + text});
    EXPECT_EQ(limit, bytes) << text;
  }
  for (const char* text : {"-1", "much", "1e3", "1M", "9999TiB", "."}) {
    EXPECT_THROW(app.parse(std::string("--limit=") + text),
                 CLI::ValidationError)
        << text;
  }
}

}  // namespace
}  // namespace qlora
