// A server stream that is pulled: whenever the client takes a message, or
// something was notified, the source is asked for the next one. It ends with
// UNAVAILABLE as soon as the notifier is closed.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/base/mutex.h"
#include "server/notifier.h"
#include "server/services/errors.h"
#include "server/thread_pool.h"

namespace qlora::server {

enum class Pull { kItem, kWait, kEnd };

// Owns itself. The source is called on the pool, by one thread at a time.
template <typename Response>
class PullStream : public grpc::ServerWriteReactor<Response> {
 public:
  using Source = std::function<absl::StatusOr<Pull>(Response*)>;

  // Wakes the stream; may outlive it. Thread-safe.
  using Wake = std::function<void()>;

  // Woken by what is notified under key.
  PullStream(ThreadPool* pool, Notifier* notifier, const std::string& key,
             Source source)
      : pool_(pool),
        notifier_(notifier),
        source_(std::move(source)),
        link_(std::make_shared<Link>(this)),
        subscription_(notifier->Subscribe(key, MakeWake())) {}

  Wake MakeWake() {
    return [link = link_] { link->Wake(); };
  }
  // Called once, when the stream has ended, before it goes.
  void OnEnd(std::function<void()> on_end) { on_end_ = std::move(on_end); }

  void OnWriteDone(bool ok) override {
    if (!ok) link_->Cancel();
    pool_->Run([this] { Step(); });
  }
  void OnCancel() override {
    link_->Cancel();
    link_->Wake();
  }
  void OnDone() override {
    if (on_end_) on_end_();
    delete this;
  }

 private:
  // Outlives the stream in wakes that were handed out.
  struct Link {
    explicit Link(PullStream* stream) : stream(stream) {}
    void Wake() {
      MutexLock lock(&mu);
      if (stream == nullptr) return;
      if (busy) {
        again = true;
        return;
      }
      busy = true;
      stream->pool_->Run([stream = stream] { stream->Step(); });
    }
    void Cancel() {
      MutexLock lock(&mu);
      cancelled = true;
    }
    // True if there is nothing to do until the next Wake.
    bool Rest() {
      MutexLock lock(&mu);
      busy = again;
      again = false;
      return !busy;
    }
    bool Cancelled() {
      MutexLock lock(&mu);
      return cancelled;
    }
    void Detach() {
      MutexLock lock(&mu);
      stream = nullptr;
    }

    Mutex mu;
    // Null once Finish was called.
    PullStream* stream ABSL_GUARDED_BY(mu);
    // A Step is queued or running, or a write is on its way.
    bool busy ABSL_GUARDED_BY(mu) = false;
    bool again ABSL_GUARDED_BY(mu) = false;
    bool cancelled ABSL_GUARDED_BY(mu) = false;
  };

  void Step() {
    while (true) {
      if (link_->Cancelled()) return End(grpc::Status::CANCELLED);
      if (notifier_->closed()) {
        return End(
            ToGrpc(absl::UnavailableError("the coordinator shuts down")));
      }
      response_.Clear();
      const absl::StatusOr<Pull> next = source_(&response_);
      if (!next.ok()) return End(ToGrpc(next.status()));
      if (*next == Pull::kEnd) return End(grpc::Status::OK);
      if (*next == Pull::kItem) return this->StartWrite(&response_);
      if (link_->Rest()) return;
    }
  }
  // The stream may be gone when this returns.
  void End(const grpc::Status& status) {
    link_->Detach();
    this->Finish(status);
  }

  ThreadPool* const pool_;
  Notifier* const notifier_;
  const Source source_;
  const std::shared_ptr<Link> link_;
  Response response_;
  std::function<void()> on_end_;
  const std::unique_ptr<Notifier::Subscription> subscription_;
};

// Makes a stream that follows what is notified under key, and starts it.
template <typename Response>
grpc::ServerWriteReactor<Response>* StartPull(
    ThreadPool* pool, Notifier* notifier, const std::string& key,
    typename PullStream<Response>::Source source) {
  auto* stream =
      new PullStream<Response>(pool, notifier, key, std::move(source));
  stream->MakeWake()();
  return stream;
}

}  // namespace qlora::server
