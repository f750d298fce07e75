#include "worker/agent/coordinator_link.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "worker/agent/artifact_client.h"

namespace qlora::agent {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(10);
constexpr absl::Duration kConnectPiece = absl::Milliseconds(200);
constexpr absl::Duration kDefaultHeartbeat = absl::Seconds(5);
constexpr absl::Duration kDefaultLease = absl::Seconds(30);

absl::Duration ToDuration(const google::protobuf::Duration& duration,
                          absl::Duration if_unset) {
  const absl::Duration value =
      absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
  return value > absl::ZeroDuration() ? value : if_unset;
}

}  // namespace

std::shared_ptr<grpc::Channel> ConnectToCoordinator(
    const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5'000);
  arguments.SetMaxReceiveMessageSize(4 << 20);
  // A proxy of the environment has no business between the two.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                   arguments);
}

CoordinatorLink::CoordinatorLink(std::shared_ptr<grpc::Channel> channel,
                                 LinkOptions options, LinkCallbacks callbacks,
                                 NodeState& state, Outbox& outbox)
    : channel_(std::move(channel)),
      options_(std::move(options)),
      callbacks_(std::move(callbacks)),
      state_(state),
      outbox_(outbox),
      thread_([this] { Run(); }) {}

CoordinatorLink::~CoordinatorLink() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    if (context_ != nullptr) context_->TryCancel();
    changed_.SignalAll();
  }
  thread_.join();
}

void CoordinatorLink::Wake() {
  MutexLock lock(&mu_);
  changed_.SignalAll();
}

void CoordinatorLink::SetDraining() {
  MutexLock lock(&mu_);
  draining_ = true;
  heartbeat_due_ = true;
  changed_.SignalAll();
}

bool CoordinatorLink::WaitUntilSent(absl::Time deadline) {
  MutexLock lock(&mu_);
  while (!outbox_.AllAcknowledged() && SteadyNow() < deadline) {
    changed_.WaitWithTimeout(&mu_, deadline - SteadyNow());
  }
  return outbox_.AllAcknowledged();
}

void CoordinatorLink::Leave(absl::Time deadline) {
  MutexLock lock(&mu_);
  draining_ = true;
  leaving_ = true;
  changed_.SignalAll();
  while (!gone_ && SteadyNow() < deadline) {
    changed_.WaitWithTimeout(&mu_, deadline - SteadyNow());
  }
}

void CoordinatorLink::Run() {
  KeepConnected();
  MutexLock lock(&mu_);
  gone_ = true;
  changed_.SignalAll();
}

void CoordinatorLink::KeepConnected() {
  Backoff backoff(options_.first_backoff, options_.longest_backoff);
  absl::Status last_logged;
  absl::Time taken_since = absl::InfiniteFuture();
  while (true) {
    const absl::Status ended = Session();
    taken_since = absl::IsAlreadyExists(ended)
                      ? std::min(taken_since, SteadyNow())
                      : absl::InfiniteFuture();
    if (SteadyNow() - taken_since >= options_.name_patience) {
      return callbacks_.on_refused(ended);
    }
    MutexLock lock(&mu_);
    if (std::exchange(registered_, false)) {
      backoff.Reset();
      last_logged = absl::OkStatus();
    }
    if (stopping_ || leaving_) return;
    if (ended != last_logged) {
      LogWarning("no stream to the coordinator; trying again",
                 {{"coordinator", options_.coordinator}, {"reason", ended}});
      last_logged = ended;
    }
    const absl::Time until = SteadyNow() + backoff.Next();
    while (!stopping_ && !leaving_ && SteadyNow() < until) {
      changed_.WaitWithTimeout(&mu_, until - SteadyNow());
    }
    if (stopping_ || leaving_) return;
  }
}

// In pieces, so that the destructor does not wait for the whole timeout.
absl::Status CoordinatorLink::AwaitChannel() {
  for (absl::Duration waited; waited < kConnectTimeout;
       waited += kConnectPiece) {
    if (channel_->WaitForConnected(
            absl::ToChronoTime(absl::Now() + kConnectPiece))) {
      return absl::OkStatus();
    }
    MutexLock lock(&mu_);
    if (stopping_) return absl::CancelledError("stopping");
  }
  return absl::UnavailableError("nothing answers there");
}

absl::Status CoordinatorLink::Session() {
  RETURN_IF_ERROR(AwaitChannel());
  grpc::ClientContext context;
  {
    MutexLock lock(&mu_);
    if (stopping_) return absl::CancelledError("stopping");
    context_ = &context;
    broken_ = false;
    break_reason_ = absl::OkStatus();
    command_to_ack_ = 0;
    last_reply_ = SteadyNow();
  }
  const auto stub = v1::WorkerService::NewStub(channel_);
  const std::unique_ptr<Stream> stream = stub->Connect(&context);
  absl::Status status = Register(*stream);
  if (status.ok()) {
    registered_ = true;
    callbacks_.on_connected(true);
    std::thread reader([&] { ReadLoop(*stream); });
    WriteLoop(*stream);
    context.TryCancel();
    reader.join();
    callbacks_.on_connected(false);
    MutexLock lock(&mu_);
    status = break_reason_;
  }
  // Cancelled: the stream is over and knows why.
  if (!absl::IsCancelled(status)) context.TryCancel();
  const grpc::Status finished = stream->Finish();
  MutexLock lock(&mu_);
  context_ = nullptr;
  if (!status.ok() && !absl::IsCancelled(status)) return status;
  return finished.error_code() == grpc::StatusCode::CANCELLED || finished.ok()
             ? absl::UnavailableError("the stream ended")
             : FromGrpc(finished);
}

absl::Status CoordinatorLink::Register(Stream& stream) {
  const NodeMemory memory = state_.Get();
  v1::ConnectRequest request;
  v1::Hello& hello = *request.mutable_hello();
  hello = options_.hello;
  for (const auto& attempt : callbacks_.inventory()) {
    *hello.add_inventory() = attempt;
  }
  hello.set_cluster_id(memory.cluster_id);
  hello.set_last_command_seen(memory.last_command);
  hello.set_term(memory.term);
  v1::ConnectResponse response;
  if (!stream.Write(request) || !stream.Read(&response)) {
    return absl::CancelledError("the stream ended");
  }
  if (!response.has_welcome()) {
    return absl::InternalError("the coordinator's first message is no Welcome");
  }
  const v1::Welcome& welcome = response.welcome();
  RETURN_IF_ERROR(state_.Welcome(welcome.cluster_id(), welcome.term()));
  heartbeat_interval_ =
      ToDuration(welcome.heartbeat_interval(), kDefaultHeartbeat);
  lease_ = ToDuration(welcome.lease(), kDefaultLease);
  ASSIGN_OR_RETURN(next_event_, outbox_.ResendFrom(std::max<uint64_t>(
                                    1, welcome.resend_from())));
  LogInfo("registered", {{"coordinator", options_.coordinator},
                         {"cluster", welcome.cluster_id()},
                         {"term", welcome.term()},
                         {"resend_from", welcome.resend_from()}});
  callbacks_.on_welcome(welcome.decisions());
  return absl::OkStatus();
}

void CoordinatorLink::WriteLoop(Stream& stream) {
  absl::Time next_heartbeat = SteadyNow();
  while (true) {
    v1::ConnectRequest ack;
    bool heartbeat = false;
    bool leaving = false;
    {
      MutexLock lock(&mu_);
      const absl::Time now = SteadyNow();
      if (stopping_ || broken_) return;
      if (now - last_reply_ > lease_) {
        break_reason_ = absl::UnavailableError("no answer to heartbeats");
        return;
      }
      leaving = leaving_;
      heartbeat = heartbeat_due_ || now >= next_heartbeat;
      const bool idle = !leaving && !heartbeat && command_to_ack_ == 0 &&
                        next_event_ >= outbox_.spool().next();
      if (idle) {
        changed_.WaitWithTimeout(&mu_, next_heartbeat - now);
        continue;
      }
      heartbeat_due_ = false;
      if (command_to_ack_ != 0) ack.set_command_ack(command_to_ack_);
      command_to_ack_ = 0;
    }
    if (ack.command_ack() != 0 && !stream.Write(ack)) return;
    if (leaving) return SayGoodbye(stream);
    if (heartbeat) {
      if (!WriteHeartbeat(stream)) return;
      next_heartbeat = SteadyNow() + heartbeat_interval_;
    }
    if (!WriteEvents(stream)) return;
  }
}

bool CoordinatorLink::WriteHeartbeat(Stream& stream) {
  v1::ConnectRequest request;
  v1::Heartbeat& heartbeat = *request.mutable_heartbeat();
  heartbeat.mutable_time()->set_seconds(absl::ToUnixSeconds(absl::Now()));
  heartbeat.set_dropped(outbox_.spool().dropped());
  {
    MutexLock lock(&mu_);
    heartbeat.set_draining(draining_);
  }
  return stream.Write(request);
}

void CoordinatorLink::SayGoodbye(Stream& stream) {
  if (!WriteHeartbeat(stream) || !stream.WritesDone()) return;
  MutexLock lock(&mu_);
  while (!stopping_ && !broken_) {
    changed_.Wait(&mu_);
  }
}

// A batch at most, so that heartbeats come in between.
bool CoordinatorLink::WriteEvents(Stream& stream) {
  constexpr int kBatch = 256;
  for (int i = 0; i < kBatch; ++i) {
    auto event = outbox_.Read(next_event_);
    if (absl::IsOutOfRange(event.status())) {
      // Acknowledged meanwhile, or not there yet.
      next_event_ = std::max(next_event_, outbox_.spool().first());
      return true;
    }
    v1::ConnectRequest request;
    if (event.ok()) {
      *request.mutable_event() = *std::move(event);
    } else {
      LogError("event cannot be read back; its number is sent empty",
               {{"number", next_event_}, {"error", event.status()}});
      request.mutable_event()->set_number(next_event_);
    }
    if (!stream.Write(request)) return false;
    ++next_event_;
  }
  return true;
}

void CoordinatorLink::ReadLoop(Stream& stream) {
  v1::ConnectResponse response;
  absl::Status status;
  while (status.ok() && stream.Read(&response)) {
    switch (response.message_case()) {
      case v1::ConnectResponse::kHeartbeatReply: {
        MutexLock lock(&mu_);
        last_reply_ = SteadyNow();
        break;
      }
      case v1::ConnectResponse::kCommand:
        status = OnCommand(std::move(*response.mutable_command()));
        break;
      case v1::ConnectResponse::kEventAck:
        outbox_.Acknowledge(response.event_ack());
        Wake();
        break;
      default:
        break;
    }
  }
  MutexLock lock(&mu_);
  broken_ = true;
  if (!status.ok()) break_reason_ = status;
  changed_.SignalAll();
}

absl::Status CoordinatorLink::OnCommand(v1::WorkerCommand command) {
  const NodeMemory memory = state_.Get();
  const uint64_t number = command.number();
  if (command.term() < memory.term) {
    LogWarning("command of an older term refused",
               {{"number", number}, {"term", command.term()}});
    return absl::OkStatus();
  }
  if (number > memory.last_command) {
    RETURN_IF_ERROR(state_.CommandSeen(number));
    callbacks_.on_command(std::move(command));
  }
  MutexLock lock(&mu_);
  command_to_ack_ = std::max(command_to_ack_, number);
  changed_.SignalAll();
  return absl::OkStatus();
}

}  // namespace qlora::agent
