// qlora-coordinator: parses flags, starts the server, waits for SIGTERM.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "absl/time/time.h"
#include "common/base/log.h"
#include "common/daemon/command_line.h"
#include "common/daemon/value_options.h"
#include "common/daemon/yaml_config.h"
#include "server/server.h"

namespace qlora::server {
namespace {

struct Flags {
  ServerOptions options;
  std::string log_format = "text";
  bool check_config = false;
};

void AddDuration(CLI::App& app, const std::string& name,
                 const std::string& environment, absl::Duration* value,
                 const std::string& help) {
  AddDurationOption(app, "--" + name, value, help)
      ->envname("QLORA_COORDINATOR_" + environment);
}

void AddFlags(CLI::App& app, Flags& flags) {
  ServerOptions& o = flags.options;
  app.add_option("--data-dir", o.data_dir,
                 "Where the database, artifacts and job files are")
      ->envname("QLORA_COORDINATOR_DATA_DIR");
  app.add_option("--listen", o.listen, "gRPC address; port 0 takes a free one")
      ->envname("QLORA_COORDINATOR_LISTEN")
      ->capture_default_str();
  app.add_option("--metrics-listen", o.metrics_listen,
                 "HTTP address of /metrics, /healthz and /readyz")
      ->envname("QLORA_COORDINATOR_METRICS_LISTEN")
      ->capture_default_str();
  app.add_option("--model-root", o.model_roots,
                 "Directory that models may be read from (repeatable)")
      ->envname("QLORA_COORDINATOR_MODEL_ROOT");
  app.add_option("--log-format", flags.log_format, "text or json")
      ->envname("QLORA_COORDINATOR_LOG_FORMAT")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  Timings& t = o.timings;
  AddDuration(app, "heartbeat", "HEARTBEAT", &t.heartbeat,
              "How often workers renew their lease");
  AddDuration(app, "lease", "LEASE", &t.lease,
              "A worker silent for so long is UNREACHABLE");
  AddDuration(app, "reschedule-after", "RESCHEDULE_AFTER", &t.reschedule_after,
              "A worker silent for so long is DOWN; its jobs start elsewhere");
  AddDuration(app, "startup-reschedule-after", "STARTUP_RESCHEDULE_AFTER",
              &t.startup_reschedule_after,
              "The same, for as long after the coordinator's start");
  AddDuration(app, "prepare-timeout", "PREPARE_TIMEOUT", &t.prepare_timeout,
              "From placing a gang until all its nodes are prepared");
  AddDuration(app, "start-timeout", "START_TIMEOUT", &t.start_timeout,
              "From then until all ranks train");
  AddDuration(app, "stop-grace", "STOP_GRACE", &t.stop_grace,
              "Ranks that were told to stop are killed after this");
  AddDuration(app, "backoff", "BACKOFF", &t.backoff,
              "First delay before a job starts again; doubles each time");
  AddDuration(app, "artifact-grace", "ARTIFACT_GRACE", &o.artifact_grace,
              "Unused artifacts are removed when untouched for so long");
  AddBytesOption(app, "--job-log-limit", &o.job_log_limit,
                 "Log lines of a job are kept up to so many bytes; what comes "
                 "after is dropped")
      ->envname("QLORA_COORDINATOR_JOB_LOG_LIMIT");
  app.set_version_flag("--version", QLORA_VERSION);
  app.add_flag("--check-config", flags.check_config,
               "Check flags, environment and file, and exit");
}

int Run(const CLI::App& app, const Flags& flags) {
  if (const absl::Status status = CheckOptions(flags.options); !status.ok()) {
    const std::string message(status.message());
    std::fprintf(stderr, "error: %s\n", WithConfigFile(app, message).c_str());
    return 2;
  }
  if (flags.check_config) {
    std::puts("configuration is fine");
    return 0;
  }
  // Blocked before any thread starts, so that only sigwait takes them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  // Start says itself what went wrong; gRPC's own lines would only repeat it.
  ::setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  InitLogging("qlora-coordinator",
              flags.log_format == "json" ? LogFormat::kJson : LogFormat::kText);
  auto server = Server::Start(flags.options);
  if (!server.ok()) {
    std::fprintf(stderr, "error: %s\n",
                 std::string(server.status().message()).c_str());
    return 1;
  }
  int signal = 0;
  sigwait(&signals, &signal);
  LogInfo("draining", {{"signal", signal}});
  server->reset();
  LogInfo("stopped");
  return 0;
}

}  // namespace
}  // namespace qlora::server

int main(int argc, char** argv) {
  CLI::App app(
      "qlora-coordinator: queues jobs, places them on workers and "
      "keeps what they produce.",
      "qlora-coordinator");
  qlora::server::Flags flags;
  app.set_config("--config", "", "YAML file with these flags as keys");
  qlora::server::AddFlags(app, flags);
  app.config_formatter(std::make_shared<qlora::YamlConfig>(
      qlora::ConfigKeys(app), qlora::KeysSetByEnvironment(app)));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return qlora::EndParsing(app, error);
  }
  return qlora::server::Run(app, flags);
}
