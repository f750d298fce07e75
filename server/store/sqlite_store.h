// The Store in one SQLite file: write-ahead log, synchronous FULL, so that a
// commit is on disk when it returns. Invariants of the state machines are
// constraints and triggers of the schema (migrations.cc).
#pragma once

#include <memory>
#include <string>

#include "server/store/sqlite.h"
#include "server/store/store.h"

namespace qlora::server {

class SqliteStore : public Store {
 public:
  // Opens or creates the file and migrates it.
  static absl::StatusOr<std::unique_ptr<SqliteStore>> Open(
      const std::string& path);

  absl::StatusOr<State> Load() override;
  absl::StatusOr<int64_t> RaiseTerm(int64_t seen) override;
  absl::Status Commit(const Transaction& transaction) override;
  absl::StatusOr<std::optional<RequestResult>> FindRequest(
      const std::string& request_id) override;
  absl::Status CheckWritable() override;

 private:
  explicit SqliteStore(Database db) : db_(std::move(db)) {}

  absl::Status CheckTerm();
  absl::Status Write(const Transaction& transaction);
  absl::Status WriteJobs(const Draft& draft);
  absl::Status WriteAttempts(const Draft& draft);
  absl::Status Reserve(const AttemptRecord& attempt);
  absl::Status WriteNodes(const Draft& draft);
  absl::Status WriteCheckpoints(const Draft& draft);
  absl::Status WriteAcks(const Transaction& transaction);
  absl::StatusOr<std::string> Meta(const std::string& key);
  absl::Status SetMeta(const std::string& key, const std::string& value);
  absl::Status TakeLead(State& state);

  Database db_;
  int64_t term_ = 0;
};

}  // namespace qlora::server
