// What the coordinator keeps across restarts. One implementation today
// (sqlite_store.h); the interface is what another database has to offer.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/state.h"

namespace qlora::server {

// The result of a mutating call, kept under the caller's request id.
struct RequestResult {
  std::string request_id;
  // SHA-256 of method and request.
  std::string digest;
  // The serialized response.
  std::string response;
};

// One transaction: all of it is stored, or nothing.
struct Transaction {
  // Null: only acknowledgements.
  const Draft* draft = nullptr;
  std::optional<RequestResult> request;
  // Highest event number stored, by node.
  std::map<std::string, uint64_t> events;
  // Commands up to these numbers are acknowledged, by node.
  std::map<std::string, uint64_t> command_acks;
  absl::Time now;
};

// Not thread-safe: the coordinator calls it under its mutex.
class Store {
 public:
  virtual ~Store() = default;

  // Takes the lead in a new term. It is larger than the stored one by a random
  // number: two coordinators that start on copies of one database never have
  // the same, so that a term names one life of it. Loads everything; plans of
  // jobs are not filled in.
  virtual absl::StatusOr<State> Load() = 0;

  // Goes on with a term newer than `seen`, and returns it. Errors as Commit.
  virtual absl::StatusOr<int64_t> RaiseTerm(int64_t seen) = 0;

  // Durable when it returns OK. Unavailable: the database cannot be written
  // (try again later); ResourceExhausted: the disk is full; Aborted: another
  // coordinator has taken the lead; Internal: an invariant would break.
  virtual absl::Status Commit(const Transaction& transaction) = 0;

  // What the id's first call gave, if there was one.
  virtual absl::StatusOr<std::optional<RequestResult>> FindRequest(
      const std::string& request_id) = 0;

  // OK if a transaction can be written now.
  virtual absl::Status CheckWritable() = 0;
};

}  // namespace qlora::server
