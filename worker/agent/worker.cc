#include "worker/agent/worker.h"

#include <signal.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/clock.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/daemon/monitoring_server.h"
#include "worker/agent/artifact_client.h"
#include "worker/agent/content_cache.h"
#include "worker/agent/coordinator_link.h"
#include "worker/agent/devices.h"
#include "worker/agent/event_loop.h"
#include "worker/agent/inputs.h"
#include "worker/agent/metrics.h"
#include "worker/agent/network.h"
#include "worker/agent/node_state.h"
#include "worker/agent/outbox.h"
#include "worker/agent/processes.h"
#include "worker/agent/supervisor.h"

namespace qlora::agent {
namespace {

constexpr absl::Duration kDrainGrace = absl::Seconds(30);
// For what ranks said last to reach the coordinator.
constexpr absl::Duration kFlushGrace = absl::Seconds(5);
// For the coordinator to close the stream.
constexpr absl::Duration kGoodbyeGrace = absl::Seconds(2);

std::string RandomId() {
  std::random_device random;
  return absl::StrCat(absl::Hex(random(), absl::kZeroPad8),
                      absl::Hex(random(), absl::kZeroPad8),
                      absl::Hex(random(), absl::kZeroPad8),
                      absl::Hex(random(), absl::kZeroPad8));
}

v1::Hello MakeHello(const WorkerOptions& options, const NodeDevices& node) {
  v1::Hello hello;
  hello.set_node(options.node_name);
  hello.set_boot_id(RandomId());
  hello.set_version(QLORA_VERSION);
  hello.set_process(
      absl::StrCat("pid ", ::getpid(), ", data directory ", options.data_dir));
  for (const v1::Device& device : node.devices) *hello.add_devices() = device;
  hello.set_memory_bytes(node.memory_bytes);
  for (const std::string& root : options.model_roots) {
    hello.add_model_roots(root);
  }
  return hello;
}

// What must exist before the first thread does.
struct Storage {
  DirectoryLock lock;
  std::unique_ptr<NodeState> state;
  std::unique_ptr<Outbox> outbox;
  std::unique_ptr<ContentCache> cache;
};

absl::StatusOr<Storage> OpenStorage(const WorkerOptions& options) {
  if (const absl::Status made = CreateDirectories(options.data_dir);
      !made.ok()) {
    return absl::Status(made.code(),
                        absl::StrCat("--data-dir ", made.message()));
  }
  ASSIGN_OR_RETURN(DirectoryLock lock,
                   DirectoryLock::Acquire(options.data_dir));
  ASSIGN_OR_RETURN(auto state,
                   NodeState::Open(options.data_dir + "/node.state"));
  SpoolOptions spool;
  spool.directory = options.data_dir + "/spool";
  ASSIGN_OR_RETURN(auto outbox, Outbox::Open(spool, Clock::Real()));
  ASSIGN_OR_RETURN(auto cache, ContentCache::Open(options.data_dir + "/cache",
                                                  options.cache_bytes));
  return Storage{.lock = std::move(lock),
                 .state = std::move(state),
                 .outbox = std::move(outbox),
                 .cache = std::move(cache)};
}

class Worker {
 public:
  Worker(const WorkerOptions& options, NodeDevices node, std::string host,
         Storage storage, Launcher launcher)
      : options_(options),
        storage_(std::move(storage)),
        metrics_(Clock::Real()),
        processes_(loop_, std::move(launcher),
                   [this] {
                     Fail(absl::UnavailableError(
                         "the launcher process is gone, and the ranks with it; "
                         "start the worker again"));
                   }),
        channel_(ConnectToCoordinator(options.coordinator)),
        artifacts_(channel_),
        fetcher_(*storage_.cache, artifacts_, options.model_roots),
        supervisor_(
            Environment{.loop = loop_,
                        .processes = processes_,
                        .fetcher = fetcher_,
                        .metrics = metrics_,
                        .emit =
                            [this](v1::WorkerEvent event) {
                              storage_.outbox->Emit(std::move(event));
                            },
                        .trainer = options.trainer,
                        .directory = options.data_dir,
                        .token_cache = storage_.cache->token_directory(),
                        .data_plane_host = std::move(host),
                        .devices = node.devices,
                        .timeouts = {.first_step = options.first_step_timeout,
                                     .step = options.step_timeout}}),
        hello_(MakeHello(options, node)) {}

  absl::Status Run() {
    storage_.outbox->OnFailure([this](const absl::Status& status) {
      Fail(absl::UnavailableError(absl::StrCat(
          "events cannot be stored any more: ", status.message())));
    });
    ASSIGN_OR_RETURN(const auto monitoring, StartMonitoring());
    RETURN_IF_ERROR(WriteFileAtomically(
        options_.data_dir + "/endpoints.json",
        nlohmann::json{{"metrics", monitoring->address()}}.dump() + "\n"));
    link_ = std::make_unique<CoordinatorLink>(
        channel_,
        LinkOptions{.coordinator = options_.coordinator, .hello = hello_},
        MakeCallbacks(), *storage_.state, *storage_.outbox);
    storage_.outbox->OnEmit([this] { link_->Wake(); });
    LogInfo("worker started", {{"node", options_.node_name},
                               {"devices", hello_.devices_size()},
                               {"coordinator", options_.coordinator},
                               {"metrics", monitoring->address()}});
    Serve();
    const Spool& spool = storage_.outbox->spool();
    LogInfo("worker ends; unsent events are kept for the next start",
            {{"events", spool.next() - spool.first()}});
    MutexLock lock(&mu_);
    return failure_;
  }

 private:
  // Until a signal and what follows from it.
  void Serve() {
    std::thread loop([this] { loop_.Run(); });
    WaitForSignal();
    LogWhyItEnds();
    Drain();
    // First: what runs on it wakes the link.
    loop_.Stop();
    loop.join();
    link_.reset();
  }

  absl::StatusOr<std::unique_ptr<MonitoringServer>> StartMonitoring() {
    return MonitoringServer::Start(
        {.listen = options_.metrics_listen,
         .metrics =
             [this] {
               const Spool& spool = storage_.outbox->spool();
               metrics_.SetSpool(spool.bytes(), spool.next() - spool.first(),
                                 spool.dropped());
               return metrics_.Text();
             },
         .ready = [this] { return Readiness(); }});
  }

  LinkCallbacks MakeCallbacks() {
    return {
        .inventory = [this] { return Inventory(); },
        .on_command =
            [this](v1::WorkerCommand command) {
              supervisor_.Handle(std::move(command));
            },
        .on_welcome =
            [this](auto decisions) {
              supervisor_.Decide(std::move(decisions));
            },
        .on_connected =
            [this](bool connected) {
              connected_ = connected;
              supervisor_.SetConnected(connected);
            },
        .on_refused = [this](absl::Status status) { Fail(std::move(status)); }};
  }

  // What lives, and what ended without the coordinator knowing.
  std::vector<v1::AttemptInventory> Inventory() const {
    std::vector<v1::AttemptInventory> all = supervisor_.Inventory();
    for (v1::AttemptInventory& end : storage_.outbox->UnacknowledgedEnds()) {
      std::erase_if(all, [&](const v1::AttemptInventory& live) {
        return live.job_id() == end.job_id() && live.attempt() == end.attempt();
      });
      all.push_back(std::move(end));
    }
    return all;
  }

  absl::Status Readiness() const {
    return connected_ ? absl::OkStatus()
                      : absl::UnavailableError(absl::StrCat(
                            "not registered with the coordinator at ",
                            options_.coordinator));
  }

  void WaitForSignal() {
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGTERM);
    ::sigaddset(&signals, SIGINT);
    int signal = 0;
    ::sigwait(&signals, &signal);
  }

  void LogWhyItEnds() {
    MutexLock lock(&mu_);
    if (!failure_.ok()) {
      LogError("worker fails; its ranks end with it");
      return;
    }
    LogInfo("worker is shutting down; ranks save and leave",
            {{"grace", absl::FormatDuration(kDrainGrace)},
             {"coordinator", connected_ ? "connected" : "away"}});
  }

  // Until no rank is left and what they made has arrived, or a second signal.
  // What has not arrived then stays on disk.
  void Drain() {
    link_->SetDraining();
    supervisor_.Drain(kDrainGrace, [this] {
      MutexLock lock(&mu_);
      drained_ = true;
      changed_.SignalAll();
    });
    std::thread impatient([this] {
      WaitForSignal();
      MutexLock lock(&mu_);
      hurry_ = true;
      changed_.SignalAll();
    });
    const absl::Time deadline = SteadyNow() + kDrainGrace + kFlushGrace;
    {
      MutexLock lock(&mu_);
      while (!drained_ && !hurry_ && failure_.ok() && SteadyNow() < deadline) {
        changed_.WaitWithTimeout(&mu_, deadline - SteadyNow());
      }
    }
    bool hurry;
    {
      MutexLock lock(&mu_);
      hurry = hurry_ || !failure_.ok();
    }
    if (!hurry && connected_) {
      link_->WaitUntilSent(SteadyNow() + kFlushGrace);
      link_->Leave(SteadyNow() + kGoodbyeGrace);
    }
    ::pthread_kill(impatient.native_handle(), SIGTERM);
    impatient.join();
  }

  // Ends the worker; its ranks end with it.
  void Fail(absl::Status status) {
    MutexLock lock(&mu_);
    if (failure_.ok()) failure_ = std::move(status);
    changed_.SignalAll();
    ::kill(::getpid(), SIGTERM);
  }

  const WorkerOptions options_;
  Storage storage_;
  AgentMetrics metrics_;
  EventLoop loop_;
  Processes processes_;
  const std::shared_ptr<grpc::Channel> channel_;
  ArtifactClient artifacts_;
  InputFetcher fetcher_;
  Supervisor supervisor_;
  const v1::Hello hello_;
  std::atomic<bool> connected_ = false;
  std::unique_ptr<CoordinatorLink> link_;

  Mutex mu_;
  CondVar changed_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  bool drained_ ABSL_GUARDED_BY(mu_) = false;
  bool hurry_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

absl::Status RunWorker(const WorkerOptions& options, Launcher launcher) {
  ASSIGN_OR_RETURN(NodeDevices node, DetectDevices(options.devices));
  ASSIGN_OR_RETURN(std::string host,
                   InterfaceAddress(options.data_plane_interface));
  ASSIGN_OR_RETURN(Storage storage, OpenStorage(options));
  Worker worker(options, std::move(node), std::move(host), std::move(storage),
                std::move(launcher));
  return worker.Run();
}

}  // namespace qlora::agent
