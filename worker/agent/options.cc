#include "worker/agent/options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/daemon/address.h"
#include "common/daemon/command_line.h"
#include "common/daemon/value_options.h"
#include "common/daemon/yaml_config.h"
#include "worker/agent/devices.h"
#include "worker/agent/network.h"

namespace qlora::agent {
namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxNodeName = 63;
// The agent looks at its ranks once a second.
constexpr absl::Duration kShortestTimeout = absl::Seconds(1);

std::string DefaultDataDir() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state != '\0') {
    return absl::StrCat(state, "/qlora/worker");
  }
  const char* home = std::getenv("HOME");
  return home == nullptr ? ""
                         : absl::StrCat(home, "/.local/state/qlora/worker");
}

std::string HostName() {
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return absl::AsciiStrToLower(name);
}

void AddOptions(CLI::App& app, WorkerOptions& o) {
  const auto env = [](const char* name) {
    return absl::StrCat("QLORA_WORKER_", name);
  };
  app.add_option("--data-dir", o.data_dir,
                 "Where the node keeps its state; one worker each")
      ->envname(env("DATA_DIR"));
  app.add_option("--coordinator", o.coordinator,
                 "The coordinator's gRPC address")
      ->envname(env("COORDINATOR"))
      ->capture_default_str();
  app.add_option("--node-name", o.node_name,
                 "This node's name in the cluster (default: the host's name)")
      ->envname(env("NODE_NAME"));
  app.add_option("--devices", o.devices,
                 "auto (one CPU rank) or cpu=N (N CPU ranks)")
      ->envname(env("DEVICES"))
      ->capture_default_str();
  app.add_option("--model-root", o.model_roots,
                 "A directory that models and data may be read from; repeat "
                 "for several")
      ->envname(env("MODEL_ROOT"));
  app.add_option("--data-plane-interface", o.data_plane_interface,
                 "Network interface that ranks use among each other")
      ->envname(env("DATA_PLANE_INTERFACE"))
      ->capture_default_str();
  app.add_option("--metrics-listen", o.metrics_listen,
                 "Address of /metrics, /healthz and /readyz; port 0: a free "
                 "one")
      ->envname(env("METRICS_LISTEN"))
      ->capture_default_str();
  app.add_option("--trainer", o.trainer,
                 "Path of qlora-trainer (default: beside this program)")
      ->envname(env("TRAINER"));
  AddDurationOption(app, "--step-timeout", &o.step_timeout,
                    "A gang that does no micro-batch for so long, and ten "
                    "times the usual, is ended and starts again")
      ->envname(env("STEP_TIMEOUT"));
  AddDurationOption(app, "--first-step-timeout", &o.first_step_timeout,
                    "The same until the first micro-batch is done")
      ->envname(env("FIRST_STEP_TIMEOUT"));
  AddBytesOption(app, "--cache-limit", &o.cache_bytes,
                 "Beyond this, and where the disk has less than 1 GiB left, "
                 "cached inputs, tokens and checkpoints that nothing uses go, "
                 "oldest first")
      ->envname(env("CACHE_LIMIT"));
  app.add_option("--log-format", o.log_format, "text or json")
      ->envname(env("LOG_FORMAT"))
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
}

absl::Status CheckNodeName(const std::string& name) {
  const bool valid =
      !name.empty() && name.size() <= kMaxNodeName &&
      std::all_of(name.begin(), name.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' ||
               c == '-' || c == '_';
      });
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--node-name \"", name, "\": expected 1 to ", kMaxNodeName,
                   " letters, digits, '.', '-' or '_'"));
}

absl::Status ResolveModelRoots(std::vector<std::string>& roots) {
  for (std::string& root : roots) {
    std::error_code error;
    const fs::path real = fs::canonical(root, error);
    if (error || !fs::is_directory(real, error)) {
      return absl::NotFoundError(
          absl::StrCat("--model-root ", root, ": no such directory"));
    }
    root = real.string();
  }
  return absl::OkStatus();
}

absl::Status ResolveTrainer(std::string& trainer) {
  if (trainer.empty()) {
    std::error_code error;
    const fs::path self = fs::read_symlink("/proc/self/exe", error);
    trainer = (self.parent_path() / "qlora-trainer").string();
  }
  if (::access(trainer.c_str(), X_OK) != 0) {
    return absl::NotFoundError(absl::StrCat(
        trainer,
        ": no such program; say with --trainer where qlora-trainer "
        "is"));
  }
  trainer = fs::absolute(trainer).string();
  return absl::OkStatus();
}

// Fills in defaults. InvalidArgument or NotFound naming the flag.
absl::Status CheckOptions(WorkerOptions& options) {
  RETURN_IF_ERROR(RequireLoopback("--coordinator", options.coordinator));
  RETURN_IF_ERROR(RequireLoopback("--metrics-listen", options.metrics_listen));
  if (options.data_dir.empty()) options.data_dir = DefaultDataDir();
  if (options.data_dir.empty()) {
    return absl::InvalidArgumentError("--data-dir: there is no HOME; name one");
  }
  options.data_dir = fs::absolute(options.data_dir).string();
  if (options.node_name.empty()) options.node_name = HostName();
  RETURN_IF_ERROR(CheckNodeName(options.node_name));
  RETURN_IF_ERROR(DetectDevices(options.devices).status());
  RETURN_IF_ERROR(InterfaceAddress(options.data_plane_interface).status());
  if (options.step_timeout < kShortestTimeout ||
      options.first_step_timeout < options.step_timeout) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--step-timeout must be at least ",
        absl::FormatDuration(kShortestTimeout),
        " and --first-step-timeout no shorter than --step-timeout"));
  }
  RETURN_IF_ERROR(ResolveModelRoots(options.model_roots));
  return ResolveTrainer(options.trainer);
}

}  // namespace

std::optional<int> ParseCommandLine(int argc, char** argv,
                                    WorkerOptions& options) {
  CLI::App app("The worker of qlorad: runs the ranks of jobs on this node.",
               "qlora-worker");
  app.set_version_flag("--version", QLORA_VERSION);
  AddOptions(app, options);
  bool check_config = false;
  app.add_flag("--check-config", check_config,
               "Check flags and configuration, then exit");
  app.set_config("--config", "", "YAML file with these flags as keys");
  app.config_formatter(
      std::make_shared<YamlConfig>(ConfigKeys(app), KeysSetByEnvironment(app)));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return EndParsing(app, error);
  }
  if (const absl::Status checked = CheckOptions(options); !checked.ok()) {
    const std::string message(checked.message());
    std::fprintf(stderr, "error: %s\n", WithConfigFile(app, message).c_str());
    return 2;
  }
  if (check_config) {
    std::printf("configuration is fine\n");
    return 0;
  }
  return std::nullopt;
}

}  // namespace qlora::agent
