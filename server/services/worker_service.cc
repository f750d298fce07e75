#include "server/services/worker_service.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"

namespace qlora::server {

using qlora::v1::ConnectRequest;
using qlora::v1::ConnectResponse;
using qlora::v1::WorkerEvent;

// Readers of the log take it in one message.
constexpr size_t kMaxLogLine = 256 << 10;

// What a stream does, apart from gRPC's reactor: the reactor dies with the
// call, this lives as long as someone may wake it.
class WorkerStream : public std::enable_shared_from_this<WorkerStream> {
 public:
  class Reactor;

  WorkerStream(const ServiceContext& services, WorkerStreams* streams,
               uint64_t id, grpc::CallbackServerContext* context)
      : services_(services), streams_(streams), id_(id), context_(context) {}

  uint64_t id() const { return id_; }

  // Reactor's side.
  void Start(Reactor* reactor);
  void OnRead(bool ok);
  void OnWritten(bool ok);
  void OnGone();

  // Others'.
  void Wake();
  void Ack(uint64_t number);
  void Close(const absl::Status& status);

 private:
  void Handle();
  absl::Status Process(const ConnectRequest& request);
  absl::Status OnHello(const qlora::v1::Hello& hello);
  absl::Status OnEvent(const WorkerEvent& event);
  absl::Status OnStaged(const WorkerEvent& event);
  absl::Status OnRecord(const WorkerEvent& event);
  // The next thing to write; false if there is none.
  bool NextLocked(ConnectResponse* response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Starts the next write, or finishes, if it can.
  void Pump();

  const ServiceContext services_;
  WorkerStreams* const streams_;
  const uint64_t id_;
  // Set by the first message, on the pool; read there and after.
  std::string node_;

  Mutex mu_;
  grpc::CallbackServerContext* context_ ABSL_GUARDED_BY(mu_);
  // Null once Finish was called.
  Reactor* reactor_ ABSL_GUARDED_BY(mu_) = nullptr;
  // What is to be written, before commands. One of each kind: a peer that only
  // writes makes nothing grow here.
  std::optional<qlora::v1::Welcome> welcome_ ABSL_GUARDED_BY(mu_);
  bool heartbeat_reply_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t event_ack_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t last_command_ ABSL_GUARDED_BY(mu_) = 0;
  bool welcomed_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  // A message is being handled: no read is on its way.
  bool handling_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> close_ ABSL_GUARDED_BY(mu_);
};

class WorkerStream::Reactor
    : public grpc::ServerBidiReactor<ConnectRequest, ConnectResponse> {
 public:
  explicit Reactor(std::shared_ptr<WorkerStream> stream)
      : stream_(std::move(stream)) {
    stream_->Start(this);
  }
  void OnReadDone(bool ok) override { stream_->OnRead(ok); }
  void OnWriteDone(bool ok) override { stream_->OnWritten(ok); }
  void OnCancel() override {
    stream_->Close(absl::CancelledError("the connection broke"));
  }
  void OnDone() override {
    stream_->OnGone();
    delete this;
  }

  ConnectRequest request;
  ConnectResponse response;

 private:
  const std::shared_ptr<WorkerStream> stream_;
};

void WorkerStream::Start(Reactor* reactor) {
  MutexLock lock(&mu_);
  reactor_ = reactor;
  reactor->StartRead(&reactor->request);
}

void WorkerStream::OnRead(bool ok) {
  if (!ok) return Close(absl::OkStatus());
  {
    MutexLock lock(&mu_);
    if (reactor_ == nullptr) return;
    handling_ = true;
  }
  services_.pool->Run([self = shared_from_this()] { self->Handle(); });
}

void WorkerStream::Handle() {
  Reactor* reactor;
  {
    MutexLock lock(&mu_);
    reactor = reactor_;
  }
  // Finish waits for handling_: the reactor is alive.
  const absl::Status status = Process(reactor->request);
  {
    MutexLock lock(&mu_);
    handling_ = false;
    if (!status.ok() && !close_) close_ = status;
    if (!close_) reactor->StartRead(&reactor->request);
  }
  Pump();
}

absl::Status WorkerStream::Process(const ConnectRequest& request) {
  if (node_.empty() != request.has_hello()) {
    return absl::InvalidArgumentError(
        "Hello must be the first message, and only that");
  }
  Coordinator& coordinator = *services_.coordinator;
  switch (request.message_case()) {
    case ConnectRequest::kHello:
      return OnHello(request.hello());
    case ConnectRequest::kHeartbeat: {
      RETURN_IF_ERROR(coordinator.Heartbeat(node_, id_, request.heartbeat()));
      MutexLock lock(&mu_);
      heartbeat_reply_ = true;
      return absl::OkStatus();
    }
    case ConnectRequest::kEvent:
      return OnEvent(request.event());
    case ConnectRequest::kCommandAck:
      return coordinator.AckCommands(node_, id_, request.command_ack());
    case ConnectRequest::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a message of an unknown kind");
}

absl::Status WorkerStream::OnHello(const qlora::v1::Hello& hello) {
  ASSIGN_OR_RETURN(qlora::v1::Welcome welcome,
                   services_.coordinator->Hello(hello, id_));
  node_ = hello.node();
  LogInfo("node connected", {{"node", node_},
                             {"boot", hello.boot_id()},
                             {"devices", hello.devices_size()}});
  {
    MutexLock lock(&mu_);
    welcome_ = std::move(welcome);
    last_command_ = hello.cluster_id().empty() ? 0 : hello.last_command_seen();
    welcomed_ = true;
  }
  // Two Hellos of one node may come here in another order than there.
  bool replaced = true;
  services_.coordinator->Read([&](const State& state) {
    const auto it = state.nodes.find(node_);
    replaced = it == state.nodes.end() || it->second.stream != id_;
    if (!replaced) streams_->Add(node_, weak_from_this());
  });
  if (replaced) {
    return absl::AbortedError("another stream of this node replaced this one");
  }
  Pump();
  return absl::OkStatus();
}

absl::Status WorkerStream::OnEvent(const WorkerEvent& event) {
  switch (event.event_case()) {
    case WorkerEvent::kMetrics:
    case WorkerEvent::kLog:
    case WorkerEvent::kTaskOutput:
    case WorkerEvent::EVENT_NOT_SET:
      return OnRecord(event);
    case WorkerEvent::kStaged:
      return OnStaged(event);
    default:
      return services_.coordinator->Event(node_, id_, event);
  }
}

// Uploads that waited here for too long, while this event could not be stored,
// may have been collected: what is not there whole never becomes a checkpoint.
absl::Status WorkerStream::OnStaged(const WorkerEvent& event) {
  const qlora::v1::RankStaged& staged = event.staged();
  absl::Status stored = services_.admission->CheckUploaded(staged.files());
  if (stored.ok()) {
    stored = services_.admission->CheckUploaded(staged.output());
  }
  if (stored.ok()) return services_.coordinator->Event(node_, id_, event);
  WorkerEvent lost = event;
  lost.mutable_notice()->set_type("CheckpointLost");
  lost.mutable_notice()->set_message(absl::StrCat(
      "step ", staged.step(), " was not committed: ", stored.message()));
  return services_.coordinator->Event(node_, id_, lost);
}

absl::Status WorkerStream::OnRecord(const WorkerEvent& event) {
  ASSIGN_OR_RETURN(const bool wanted,
                   services_.coordinator->AcceptEvent(node_, id_, event));
  if (!wanted) return absl::OkStatus();
  if (event.has_task_output()) {
    services_.tasks->OnOutput(event.task_output());
    return absl::OkStatus();
  }
  absl::Status status;
  if (event.has_metrics()) {
    qlora::v1::MetricPoint point = event.metrics();
    point.set_attempt(event.attempt());
    if (!services_.telemetry->OnPoint(event.job_id(), point)) return status;
    status = services_.log->Append(event.job_id(), LogKind::kMetrics, point);
  } else if (event.has_log()) {
    qlora::v1::LogLine line = event.log();
    line.set_attempt(event.attempt());
    line.set_text(Abridged(event.log().text(), kMaxLogLine));
    line.set_level(Abridged(event.log().level(), kMaxTextBytes));
    status = services_.log->Append(event.job_id(), LogKind::kLogs, line);
  }
  // Curves and logs are not worth stopping for.
  if (!status.ok()) {
    LogWarning("not recorded", {{"job", event.job_id()}, {"error", status}});
  }
  services_.notifier->Notify(event.job_id());
  return absl::OkStatus();
}

void WorkerStream::Ack(uint64_t number) {
  {
    MutexLock lock(&mu_);
    event_ack_ = std::max(event_ack_, number);
  }
  Pump();
}

bool WorkerStream::NextLocked(ConnectResponse* response) {
  response->Clear();
  if (!welcomed_) return false;
  if (welcome_) {
    *response->mutable_welcome() = *std::exchange(welcome_, std::nullopt);
  } else if (heartbeat_reply_) {
    heartbeat_reply_ = false;
    response->mutable_heartbeat_reply()->set_term(
        services_.coordinator->term());
  } else if (event_ack_ > 0) {
    response->set_event_ack(std::exchange(event_ack_, 0));
  } else {
    const std::vector<Command> next =
        services_.coordinator->CommandsAfter(node_, last_command_, 1);
    if (next.empty()) return false;
    last_command_ = next.front()->number();
    *response->mutable_command() = *next.front();
  }
  return true;
}

void WorkerStream::Wake() { Pump(); }

void WorkerStream::Pump() {
  Reactor* finish = nullptr;
  absl::Status status;
  {
    MutexLock lock(&mu_);
    if (reactor_ == nullptr || writing_) return;
    if (close_) {
      if (handling_) return;
      finish = std::exchange(reactor_, nullptr);
      context_ = nullptr;
      status = *close_;
    } else {
      if (!NextLocked(&reactor_->response)) return;
      writing_ = true;
      return reactor_->StartWrite(&reactor_->response);
    }
  }
  finish->Finish(ToGrpc(status));
}

void WorkerStream::OnWritten(bool ok) {
  {
    MutexLock lock(&mu_);
    writing_ = false;
    if (!ok && !close_) close_ = absl::CancelledError("the connection broke");
  }
  Pump();
}

void WorkerStream::Close(const absl::Status& status) {
  {
    MutexLock lock(&mu_);
    if (reactor_ == nullptr || close_) return;
    close_ = status;
    // A peer that takes nothing would keep the write, and the call, forever.
    if (writing_) context_->TryCancel();
  }
  Pump();
}

void WorkerStream::OnGone() {
  services_.pool->Run([self = shared_from_this()] {
    if (self->node_.empty()) return;
    LogInfo("node disconnected", {{"node", self->node_}});
    self->services_.coordinator->Disconnect(self->node_, self->id_);
  });
}

void WorkerStreams::Add(const std::string& node,
                        std::weak_ptr<WorkerStream> stream) {
  MutexLock lock(&mu_);
  streams_[node] = std::move(stream);
}

std::shared_ptr<WorkerStream> WorkerStreams::Find(const std::string& node) {
  MutexLock lock(&mu_);
  const auto it = streams_.find(node);
  return it == streams_.end() ? nullptr : it->second.lock();
}

void WorkerStreams::WakeCommands(const std::string& node) {
  if (const auto stream = Find(node)) stream->Wake();
}

void WorkerStreams::AckEvents(const std::string& node, uint64_t number) {
  if (const auto stream = Find(node)) stream->Ack(number);
}

void WorkerStreams::Close(const std::string& node, uint64_t id,
                          const absl::Status& status) {
  const auto stream = Find(node);
  if (stream != nullptr && stream->id() == id) stream->Close(status);
}

void WorkerStreams::CloseAll(const absl::Status& status) {
  std::vector<std::shared_ptr<WorkerStream>> open;
  {
    MutexLock lock(&mu_);
    for (const auto& [node, stream] : streams_) {
      if (auto live = stream.lock()) open.push_back(std::move(live));
    }
  }
  for (const auto& stream : open) stream->Close(status);
}

grpc::ServerBidiReactor<ConnectRequest, ConnectResponse>*
WorkerService::Connect(grpc::CallbackServerContext* context) {
  return new WorkerStream::Reactor(std::make_shared<WorkerStream>(
      services_, streams_, ++last_stream_, context));
}

}  // namespace qlora::server
