#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/daemon/address.h"
#include "common/daemon/monitoring_server.h"
#include "server/core/references.h"
#include "server/effects.h"
#include "server/lexical_path.h"
#include "server/services/artifact_service.h"
#include "server/services/job_service.h"
#include "server/services/registry_services.h"
#include "server/services/rpc_metrics.h"
#include "server/services/worker_service.h"
#include "server/store/sqlite_store.h"

namespace qlora::server {
namespace {

constexpr int kPoolThreads = 8;
// Of their own: leases must not run out because users' calls take all threads.
constexpr int kWorkerThreads = 4;
constexpr absl::Duration kTick = absl::Milliseconds(200);
constexpr absl::Duration kSyncLogs = absl::Seconds(5);
// Of jobs that the database does not know: the one that knows them may be put
// back after an older copy was tried.
constexpr absl::Duration kKeepUnknownJobs = absl::Hours(7 * 24);
// At shutdown, for calls that wait for nobody but their peer.
constexpr std::chrono::seconds kLastWords(1);

absl::Status CannotListen(const std::string& address) {
  return absl::UnavailableError(absl::StrCat(
      "cannot listen on ", address,
      ": the port is taken or the address is not this machine's; choose "
      "another with --listen, port 0 for any free one"));
}

}  // namespace

// Built and destroyed in this order and its reverse.
struct Server::Parts {
  explicit Parts(ServerOptions o)
      : options(std::move(o)),
        log(absl::StrCat(options.data_dir, "/jobs"), options.job_log_limit),
        telemetry(&log, Clock::Real()),
        effects(&log, &notifier, &telemetry, &streams) {}
  ~Parts();

  absl::Status Open();
  absl::Status Listen();
  absl::Status Publish();
  void KeepTime();
  void Housekeeping(absl::Time now);
  std::string EndpointsPath() const {
    return absl::StrCat(options.data_dir, "/endpoints.json");
  }

  const ServerOptions options;
  std::unique_ptr<DirectoryLock> directory_lock;
  std::unique_ptr<Store> store;
  std::unique_ptr<ArtifactStore> artifacts;
  JobLog log;
  Notifier notifier;
  Telemetry telemetry;
  WorkerStreams streams;
  Effects effects;
  std::unique_ptr<Coordinator> coordinator;
  std::unique_ptr<Tasks> tasks;
  std::unique_ptr<Admission> admission;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<ThreadPool> worker_pool;
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::unique_ptr<grpc::Server> grpc_server;
  std::unique_ptr<MonitoringServer> monitoring;
  std::string grpc_address;

  Mutex mu;
  CondVar wake;
  bool stopping ABSL_GUARDED_BY(mu) = false;
  absl::Time next_sync, next_collection;
  // Last: joined before what it uses goes.
  std::thread timer;
};

absl::Status CheckOptions(const ServerOptions& options) {
  if (options.data_dir.empty()) {
    return absl::InvalidArgumentError("--data-dir: name a directory");
  }
  RETURN_IF_ERROR(RequireLoopback("--listen", options.listen));
  RETURN_IF_ERROR(RequireLoopback("--metrics-listen", options.metrics_listen));
  for (const std::string& root : options.model_roots) {
    std::error_code error;
    if (!std::filesystem::is_directory(root, error)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model-root ", root, ": no such directory"));
    }
  }
  if (options.job_log_limit < 1) {
    return absl::InvalidArgumentError("--job-log-limit: must be 1 or more");
  }
  const Timings& t = options.timings;
  if (t.heartbeat <= absl::ZeroDuration() || t.lease <= t.heartbeat ||
      t.reschedule_after < t.lease) {
    return absl::InvalidArgumentError(
        "--heartbeat must be shorter than --lease, and --lease no longer than "
        "--reschedule-after");
  }
  return absl::OkStatus();
}

absl::Status Server::Parts::Open() {
  if (const absl::Status made = CreateDirectories(options.data_dir);
      !made.ok()) {
    return {made.code(), absl::StrCat("--data-dir ", made.message())};
  }
  ASSIGN_OR_RETURN(DirectoryLock held,
                   DirectoryLock::Acquire(options.data_dir));
  directory_lock = std::make_unique<DirectoryLock>(std::move(held));
  RETURN_IF_ERROR(CreateDirectories(absl::StrCat(options.data_dir, "/jobs")));
  ASSIGN_OR_RETURN(artifacts, ArtifactStore::Open(absl::StrCat(options.data_dir,
                                                               "/artifacts")));
  ASSIGN_OR_RETURN(store, SqliteStore::Open(absl::StrCat(options.data_dir,
                                                         "/coordinator.db")));
  ASSIGN_OR_RETURN(coordinator,
                   Coordinator::Create(options.timings, store.get(), &effects,
                                       Clock::Real()));
  tasks = std::make_unique<Tasks>(coordinator.get());
  effects.set_tasks(tasks.get());
  std::vector<std::string> roots;
  for (const std::string& root : options.model_roots) {
    roots.push_back(std::filesystem::canonical(root).string());
    const std::string given = LexicalPath(std::filesystem::absolute(root));
    if (given != roots.back()) roots.push_back(given);
  }
  admission = std::make_unique<Admission>(coordinator.get(), artifacts.get(),
                                          std::move(roots));
  pool = std::make_unique<ThreadPool>(kPoolThreads);
  worker_pool = std::make_unique<ThreadPool>(kWorkerThreads);
  return absl::OkStatus();
}

absl::Status Server::Parts::Listen() {
  const ServiceContext context{coordinator.get(), &log,       artifacts.get(),
                               &notifier,         &telemetry, tasks.get(),
                               admission.get(),   pool.get()};
  services.push_back(std::make_unique<JobService>(context));
  services.push_back(std::make_unique<ArtifactService>(context));
  services.push_back(std::make_unique<ModelService>(context));
  services.push_back(std::make_unique<DatasetService>(context));
  services.push_back(std::make_unique<NodeService>(context));
  services.push_back(std::make_unique<CheckpointService>(context));
  services.push_back(std::make_unique<ServerService>());
  ServiceContext workers = context;
  workers.pool = worker_pool.get();
  services.push_back(std::make_unique<WorkerService>(workers, &streams));

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  // Else a second coordinator would share the port without a word.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  std::vector<
      std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
      interceptors;
  interceptors.push_back(std::make_unique<RpcMetrics>(&telemetry));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  for (const auto& service : services) builder.RegisterService(service.get());
  ASSIGN_OR_RETURN(HostPort address, ParseHostPort(options.listen));
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(),
                           &port);
  grpc_server = builder.BuildAndStart();
  if (grpc_server == nullptr || port == 0) return CannotListen(options.listen);
  address.port = port;
  grpc_address = address.ToString();
  return absl::OkStatus();
}

absl::Status Server::Parts::Publish() {
  ASSIGN_OR_RETURN(
      monitoring, MonitoringServer::Start(
                      {.listen = options.metrics_listen,
                       .metrics =
                           [this] {
                             std::vector<prometheus::MetricFamily> families;
                             coordinator->Read([&](const State& state) {
                               families = StateFamilies(state);
                             });
                             return telemetry.Text(std::move(families));
                           },
                       .ready = [this] { return coordinator->CheckReady(); }}));
  nlohmann::ordered_json endpoints;
  endpoints["grpc"] = grpc_address;
  endpoints["metrics"] = monitoring->address();
  return WriteFileAtomically(EndpointsPath(), endpoints.dump() + "\n");
}

void Server::Parts::KeepTime() {
  while (true) {
    {
      MutexLock lock(&mu);
      if (!stopping) wake.WaitWithTimeout(&mu, kTick);
      if (stopping) return;
    }
    if (absl::Status status = coordinator->Tick(); !status.ok()) {
      LogWarning("tick failed", {{"error", status}});
    }
    Housekeeping(SteadyNow());
  }
}

void Server::Parts::Housekeeping(absl::Time now) {
  if (now >= next_sync) {
    next_sync = now + kSyncLogs;
    log.Sync();
    grpc_server->GetHealthCheckService()->SetServingStatus(
        coordinator->CheckReady().ok());
  }
  if (now >= next_collection) {
    next_collection = now + options.artifact_grace / 2;
    std::set<std::string> used, jobs;
    coordinator->Read([&](const State& state) {
      used = ReferencedArtifacts(state);
      for (const auto& [id, job] : state.jobs) jobs.insert(id);
    });
    const int removed =
        artifacts->Collect(used, absl::Now() - options.artifact_grace);
    if (removed > 0) LogInfo("artifacts removed", {{"count", removed}});
    log.Collect(jobs, absl::Now() - kKeepUnknownJobs);
  }
}

Server::Parts::~Parts() {
  if (coordinator != nullptr) coordinator->Drain();
  if (timer.joinable()) {
    {
      MutexLock lock(&mu);
      stopping = true;
    }
    wake.SignalAll();
    timer.join();
  }
  if (monitoring != nullptr) {
    (void)RemoveRecursively(EndpointsPath());
    monitoring.reset();
  }
  if (grpc_server != nullptr) {
    grpc_server->GetHealthCheckService()->SetServingStatus(false);
    notifier.Close();
    streams.CloseAll(absl::UnavailableError("the coordinator shuts down"));
    grpc_server->Shutdown(std::chrono::system_clock::now() + kLastWords);
    grpc_server->Wait();
    // What the last calls left to do still needs the coordinator.
    worker_pool.reset();
    pool.reset();
    grpc_server.reset();
  }
  if (coordinator != nullptr) (void)coordinator->Tick();
  log.Sync();
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const ServerOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  auto parts = std::make_unique<Parts>(options);
  RETURN_IF_ERROR(parts->Open());
  RETURN_IF_ERROR(parts->Listen());
  RETURN_IF_ERROR(parts->Publish());
  parts->next_sync = SteadyNow();
  // Workers that were cut off have staged what no event names yet.
  parts->next_collection =
      SteadyNow() + std::max(options.artifact_grace,
                             options.timings.startup_reschedule_after);
  parts->timer = std::thread([p = parts.get()] { p->KeepTime(); });
  LogInfo("coordinator ready", {{"grpc", parts->grpc_address},
                                {"metrics", parts->monitoring->address()},
                                {"data_dir", options.data_dir},
                                {"cluster", parts->coordinator->cluster_id()},
                                {"term", parts->coordinator->term()}});
  return std::unique_ptr<Server>(new Server(std::move(parts)));
}

Server::Server(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Server::~Server() = default;

const std::string& Server::grpc_address() const { return parts_->grpc_address; }
const std::string& Server::metrics_address() const {
  return parts_->monitoring->address();
}

}  // namespace qlora::server
