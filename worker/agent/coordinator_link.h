// The node's stream to the coordinator (worker.proto): registers, sends events
// from the outbox until they are acknowledged, takes commands once each, keeps
// the lease. Reconnects with full jitter for as long as it lives.
//
// Two threads: one that connects and writes, and one that reads while a stream
// is open. The callbacks are called from them and must return soon.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"
#include "grpcpp/channel.h"
#include "qlora/v1/worker.grpc.pb.h"
#include "worker/agent/backoff.h"
#include "worker/agent/node_state.h"
#include "worker/agent/outbox.h"

namespace qlora::agent {

struct LinkOptions {
  // "127.0.0.1:7070"; for messages.
  std::string coordinator;
  // Node, devices and so on; inventory and what is remembered are filled in.
  v1::Hello hello;
  absl::Duration first_backoff = absl::Milliseconds(200);
  absl::Duration longest_backoff = absl::Seconds(10);
  // How long the stream of a former run may hold the node's name.
  absl::Duration name_patience = absl::Seconds(5);
};

struct LinkCallbacks {
  std::function<std::vector<v1::AttemptInventory>()> inventory;
  std::function<void(v1::WorkerCommand)> on_command;
  std::function<void(google::protobuf::RepeatedPtrField<v1::Decision>)>
      on_welcome;
  std::function<void(bool)> on_connected;
  // Another worker has the node's name: AlreadyExists. There is no new stream
  // afterwards.
  std::function<void(absl::Status)> on_refused;
};

class CoordinatorLink {
 public:
  // channel, state and outbox must outlive this.
  CoordinatorLink(std::shared_ptr<grpc::Channel> channel, LinkOptions options,
                  LinkCallbacks callbacks, NodeState& state, Outbox& outbox);
  // Disconnects and joins its threads.
  ~CoordinatorLink();
  CoordinatorLink(const CoordinatorLink&) = delete;
  CoordinatorLink& operator=(const CoordinatorLink&) = delete;

  // The outbox has something new.
  void Wake();
  // Heartbeats say from now on that the node shuts down.
  void SetDraining();
  // False if the outbox still holds something at `deadline` (SteadyNow).
  bool WaitUntilSent(absl::Time deadline);
  // Takes leave: a last heartbeat says that the node shuts down, then the
  // stream is closed, so that the coordinator need not wait for the lease to
  // run out. Blocks until the coordinator has closed it too, or `deadline`.
  // There is no new stream afterwards.
  void Leave(absl::Time deadline);

 private:
  using Stream =
      grpc::ClientReaderWriter<v1::ConnectRequest, v1::ConnectResponse>;

  void Run();
  void KeepConnected();
  // One stream from Hello to its end; returns why it ended.
  absl::Status Session();
  absl::Status AwaitChannel();
  absl::Status Register(Stream& stream);
  // Writes until the stream breaks or this stops.
  void WriteLoop(Stream& stream);
  bool WriteEvents(Stream& stream);
  bool WriteHeartbeat(Stream& stream);
  void SayGoodbye(Stream& stream);
  void ReadLoop(Stream& stream);
  absl::Status OnCommand(v1::WorkerCommand command);

  const std::shared_ptr<grpc::Channel> channel_;
  const LinkOptions options_;
  const LinkCallbacks callbacks_;
  NodeState& state_;
  Outbox& outbox_;

  // Of the open stream; the writing thread's.
  bool registered_ = false;
  uint64_t next_event_ = 1;
  absl::Duration heartbeat_interval_;
  absl::Duration lease_;

  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool leaving_ ABSL_GUARDED_BY(mu_) = false;
  // Run has returned.
  bool gone_ ABSL_GUARDED_BY(mu_) = false;
  bool heartbeat_due_ ABSL_GUARDED_BY(mu_) = false;
  // Set by the reading thread.
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status break_reason_ ABSL_GUARDED_BY(mu_);
  uint64_t command_to_ack_ ABSL_GUARDED_BY(mu_) = 0;
  // SteadyNow.
  absl::Time last_reply_ ABSL_GUARDED_BY(mu_);
  // The open stream's, for the destructor.
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mu_) = nullptr;

  // Last: uses what is above.
  std::thread thread_;
};

// With the keepalive settings of a worker (20 s, 10 s, without calls too).
std::shared_ptr<grpc::Channel> ConnectToCoordinator(const std::string& address);

}  // namespace qlora::agent
