// Wakes streams that wait for something to happen to a job, or for the end of
// this process. Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/mutex.h"

namespace qlora::server {

class Notifier {
 public:
  // Ends the subscription when destroyed; a call that is under way may still
  // come. Must not outlive the Notifier.
  class Subscription {
   public:
    Subscription(Notifier* notifier, std::string key, uint64_t id)
        : notifier_(notifier), key_(std::move(key)), id_(id) {}
    ~Subscription() { notifier_->Remove(key_, id_); }
    Subscription(const Subscription&) = delete;
    Subscription& operator=(const Subscription&) = delete;

   private:
    Notifier* const notifier_;
    const std::string key_;
    const uint64_t id_;
  };

  // wake must not block; it is called without locks held.
  std::unique_ptr<Subscription> Subscribe(const std::string& key,
                                          std::function<void()> wake) {
    MutexLock lock(&mu_);
    wakes_[key][++last_id_] = std::move(wake);
    return std::make_unique<Subscription>(this, key, last_id_);
  }

  void Notify(const std::string& key) {
    for (const auto& wake : Wakes(key)) wake();
  }

  // Wakes everybody: from now on closed() is true, and streams shall end.
  void Close() {
    std::vector<std::string> keys;
    {
      MutexLock lock(&mu_);
      closed_ = true;
      for (const auto& [key, wakes] : wakes_) keys.push_back(key);
    }
    for (const std::string& key : keys) Notify(key);
  }
  bool closed() {
    MutexLock lock(&mu_);
    return closed_;
  }

 private:
  std::vector<std::function<void()>> Wakes(const std::string& key) {
    std::vector<std::function<void()>> wakes;
    MutexLock lock(&mu_);
    const auto it = wakes_.find(key);
    if (it == wakes_.end()) return wakes;
    for (const auto& [id, wake] : it->second) wakes.push_back(wake);
    return wakes;
  }
  void Remove(const std::string& key, uint64_t id) {
    MutexLock lock(&mu_);
    const auto it = wakes_.find(key);
    it->second.erase(id);
    if (it->second.empty()) wakes_.erase(it);
  }

  Mutex mu_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t last_id_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, std::map<uint64_t, std::function<void()>>> wakes_
      ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::server
