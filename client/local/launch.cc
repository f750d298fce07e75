#include "client/local/launch.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/connection.h"
#include "client/errors.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace fs = std::filesystem;
namespace {

constexpr absl::Duration kReadyLimit = absl::Seconds(60);
constexpr absl::Duration kPoll = absl::Milliseconds(50);
constexpr absl::Duration kStopGrace = absl::Seconds(10);
constexpr int kLogLines = 8;

bool PortIsFree(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const int on = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool free =
      ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  ::close(fd);
  return free;
}

// Where a daemon listened before, else the usual port.
int PortOf(const std::string& address, int usual) {
  int port = 0;
  const size_t colon = address.rfind(':');
  return colon != std::string::npos &&
                 absl::SimpleAtoi(address.substr(colon + 1), &port)
             ? port
             : usual;
}

// The port, or 0 (the daemon takes a free one) when it is taken or kept
// for another.
std::string ListenAddress(int port,
                          const std::vector<std::string>& reserved = {}) {
  const std::string usual = absl::StrCat("127.0.0.1:", port);
  const bool kept =
      std::find(reserved.begin(), reserved.end(), usual) != reserved.end();
  return kept || !PortIsFree(port) ? "127.0.0.1:0" : usual;
}

std::string LastLines(const std::string& log_file) {
  const absl::StatusOr<std::string> text = ReadFile(log_file);
  if (!text.ok()) return "";
  std::vector<std::string> lines =
      absl::StrSplit(*text, '\n', absl::SkipEmpty());
  if (lines.size() > kLogLines) {
    lines.erase(lines.begin(), lines.end() - kLogLines);
  }
  return absl::StrJoin(lines, "\n");
}

struct Daemon {
  std::string name;
  std::string directory;
  std::string log_file;
  ProcessId process;
};

absl::Status DaemonError(const Daemon& daemon, const std::string& what) {
  const std::string log = LastLines(daemon.log_file);
  return WithHint(
      WithWhat(absl::UnavailableError(log.empty() ? "its log is empty" : log),
               absl::StrCat(daemon.name, " ", what)),
      absl::StrCat("less ", daemon.log_file));
}

// Calls `ready` until it says true; an error if the daemon ends before.
absl::Status AwaitDaemon(const Daemon& daemon,
                         const std::function<bool()>& ready) {
  const absl::Time end = absl::Now() + kReadyLimit;
  while (!ready()) {
    ReapIfEnded(daemon.process);
    if (!IsAlive(daemon.process)) {
      return DaemonError(daemon, "ended while it started");
    }
    if (absl::Now() > end) {
      return DaemonError(daemon,
                         absl::StrCat("is not ready after ",
                                      absl::FormatDuration(kReadyLimit)));
    }
    absl::SleepFor(kPoll);
  }
  return absl::OkStatus();
}

// <directory>/endpoints.json, once the daemon has written it.
nlohmann::json ReadEndpoints(const Daemon& daemon) {
  const absl::StatusOr<std::string> text =
      ReadFile(daemon.directory + "/endpoints.json");
  if (!text.ok()) return nullptr;
  const nlohmann::json json =
      nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  return json.is_object() ? json : nlohmann::json(nullptr);
}

class Launcher {
 public:
  Launcher(const LaunchOptions& options, std::string programs)
      : options_(options), programs_(std::move(programs)) {
    if (options.remains) instance_ = *options.remains;
    instance_.cpu_ranks = options.cpu_ranks;
    instance_.model_roots = options.model_roots;
  }

  absl::Status Run() {
    if (!IsAlive(instance_.coordinator)) RETURN_IF_ERROR(StartCoordinator());
    worker_ = {"qlora-worker", options_.data_dir + "/worker",
               WorkerLog(options_.data_dir), instance_.worker};
    if (!IsAlive(instance_.worker)) RETURN_IF_ERROR(StartWorker());
    return AwaitNode();
  }

  const LocalInstance& instance() const { return instance_; }

  // Ends what this launcher started.
  void Undo() {
    if (!options_.remains) {
      StopInstance(options_.data_dir, instance_, kStopGrace)
          .status()
          .IgnoreError();
      return;
    }
    if (!IsAlive(options_.remains->worker)) {
      StopProcess(instance_.worker, kStopGrace);
    }
    if (!IsAlive(options_.remains->coordinator)) {
      StopProcess(instance_.coordinator, kStopGrace);
    }
  }

 private:
  // Starts the program with its own data directory and waits for its addresses.
  absl::StatusOr<nlohmann::json> Start(Daemon& daemon, ProcessId& recorded,
                                       std::vector<std::string> args) {
    RETURN_IF_ERROR(CreateDirectories(daemon.directory));
    RETURN_IF_ERROR(RemoveRecursively(daemon.directory + "/endpoints.json"));
    SpawnOptions spawn;
    spawn.argv = {absl::StrCat(programs_, "/", daemon.name), "--data-dir",
                  daemon.directory};
    spawn.argv.insert(spawn.argv.end(), args.begin(), args.end());
    spawn.working_directory = daemon.directory;
    spawn.die_with_parent = options_.foreground;
    if (!options_.foreground) spawn.log_file = daemon.log_file;
    const absl::StatusOr<ProcessId> process = Spawn(spawn);
    if (!process.ok()) {
      return WithWhat(process.status(),
                      absl::StrCat("cannot start ", daemon.name));
    }
    daemon.process = recorded = *process;
    RETURN_IF_ERROR(SaveInstance(options_.data_dir, instance_));
    nlohmann::json endpoints;
    RETURN_IF_ERROR(AwaitDaemon(daemon, [&] {
      endpoints = ReadEndpoints(daemon);
      return !endpoints.is_null();
    }));
    return endpoints;
  }

  absl::Status StartCoordinator() {
    coordinator_ = {"qlora-coordinator",
                    options_.data_dir + "/coordinator",
                    CoordinatorLog(options_.data_dir),
                    {}};
    // A worker that still runs looks for it where it was.
    const bool again = IsAlive(instance_.worker);
    std::vector<std::string> args = {
        "--listen",
        again ? instance_.endpoint
              : ListenAddress(kUsualPort, options_.reserved),
        "--metrics-listen",
        ListenAddress(PortOf(instance_.metrics, kUsualMetricsPort),
                      options_.reserved)};
    AppendRoots(&args);
    ASSIGN_OR_RETURN(const nlohmann::json endpoints,
                     Start(coordinator_, instance_.coordinator, args));
    instance_.endpoint = endpoints.value("grpc", "");
    instance_.metrics = endpoints.value("metrics", "");
    return SaveInstance(options_.data_dir, instance_);
  }

  absl::Status StartWorker() {
    std::vector<std::string> args = {
        "--coordinator",
        instance_.endpoint,
        "--node-name",
        "local",
        "--metrics-listen",
        ListenAddress(
            PortOf(instance_.worker_metrics, kUsualWorkerMetricsPort)),
        "--devices",
        options_.cpu_ranks > 0 ? absl::StrCat("cpu=", options_.cpu_ranks)
                               : "auto"};
    AppendRoots(&args);
    ASSIGN_OR_RETURN(const nlohmann::json endpoints,
                     Start(worker_, instance_.worker, args));
    instance_.worker_metrics = endpoints.value("metrics", "");
    return SaveInstance(options_.data_dir, instance_);
  }

  // Both daemons read models only below these.
  void AppendRoots(std::vector<std::string>* args) const {
    for (const std::string& root : options_.model_roots) {
      args->insert(args->end(), {"--model-root", root});
    }
  }

  // The worker is ready when the coordinator says so.
  absl::Status AwaitNode() {
    Connection connection(instance_.endpoint);
    return AwaitDaemon(worker_, [&] {
      const absl::StatusOr<v1::ListNodesResponse> nodes =
          connection.Call(connection.nodes(), &v1::NodeService::Stub::ListNodes,
                          v1::ListNodesRequest());
      if (!nodes.ok()) return false;
      for (const v1::Node& node : nodes->nodes()) {
        if (node.state() == v1::NODE_STATE_READY) return true;
      }
      return false;
    });
  }

  const LaunchOptions& options_;
  const std::string programs_;
  LocalInstance instance_;
  Daemon coordinator_;
  Daemon worker_;
};

}  // namespace

absl::StatusOr<std::string> ProgramDirectory() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (error) return ErrnoToStatus(error.value(), "/proc/self/exe");
  return self.parent_path().string();
}

absl::StatusOr<LocalInstance> LaunchLocal(const LaunchOptions& options) {
  ASSIGN_OR_RETURN(const std::string programs, ProgramDirectory());
  Launcher launcher(options, programs);
  const absl::Status status = launcher.Run();
  if (status.ok()) return launcher.instance();
  launcher.Undo();
  return status;
}

}  // namespace qlora::client
