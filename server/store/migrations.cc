#include "server/store/migrations.h"

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace qlora::server {
namespace {

// Step n leads from version n to n + 1; steps are never changed once released.
// Records are protocol buffers (records.proto); what a constraint or a query
// needs stands beside them in columns. Numbers of states are those of the
// protos: job 10 to 12 and attempt 5 to 9 are terminal.
constexpr const char* kSteps[] = {
    R"sql(
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE projects (name TEXT PRIMARY KEY, create_time INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE TABLE jobs (
  id TEXT PRIMARY KEY,
  project TEXT NOT NULL REFERENCES projects(name),
  name TEXT NOT NULL,
  state INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  head_step INTEGER NOT NULL,
  record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE attempts (
  job TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  state INTEGER NOT NULL,
  term INTEGER NOT NULL,
  record BLOB NOT NULL,
  PRIMARY KEY (job, attempt)) WITHOUT ROWID;
CREATE UNIQUE INDEX one_live_attempt_a_job ON attempts(job) WHERE state < 5;
CREATE TABLE reservations (
  node TEXT NOT NULL,
  device TEXT NOT NULL,
  job TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  PRIMARY KEY (node, device)) WITHOUT ROWID;
CREATE INDEX reservations_of_attempt ON reservations(job, attempt);
CREATE TABLE nodes (
  name TEXT PRIMARY KEY,
  last_event INTEGER NOT NULL,
  record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
  node TEXT NOT NULL,
  number INTEGER NOT NULL,
  command BLOB NOT NULL,
  PRIMARY KEY (node, number)) WITHOUT ROWID;
CREATE TABLE checkpoints (
  job TEXT NOT NULL REFERENCES jobs(id) DEFERRABLE INITIALLY DEFERRED,
  step INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  record BLOB NOT NULL,
  PRIMARY KEY (job, step)) WITHOUT ROWID;
CREATE TABLE models (name TEXT PRIMARY KEY, record BLOB NOT NULL)
  WITHOUT ROWID;
CREATE TABLE datasets (name TEXT PRIMARY KEY, record BLOB NOT NULL)
  WITHOUT ROWID;
CREATE TABLE requests (
  id TEXT PRIMARY KEY,
  digest TEXT NOT NULL,
  response BLOB NOT NULL,
  time INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX requests_by_time ON requests(time);

CREATE TRIGGER terminal_jobs_stay BEFORE UPDATE ON jobs
  WHEN OLD.state BETWEEN 10 AND 12 AND NEW.state <> OLD.state
  BEGIN SELECT RAISE(ABORT, 'a terminal job changes its state'); END;
CREATE TRIGGER head_only_grows BEFORE UPDATE ON jobs
  WHEN NEW.head_step < OLD.head_step
  BEGIN SELECT RAISE(ABORT, 'the head checkpoint goes back'); END;
CREATE TRIGGER attempts_only_grow BEFORE UPDATE ON jobs
  WHEN NEW.attempt < OLD.attempt
  BEGIN SELECT RAISE(ABORT, 'the attempt number goes back'); END;
CREATE TRIGGER terminal_attempts_stay BEFORE UPDATE ON attempts
  WHEN OLD.state >= 5 AND NEW.state <> OLD.state
  BEGIN SELECT RAISE(ABORT, 'a terminal attempt changes its state'); END;
)sql",
};
constexpr int kVersion = static_cast<int>(std::size(kSteps));

absl::StatusOr<int> CurrentVersion(Database& db) {
  RETURN_IF_ERROR(
      db.Execute("CREATE TABLE IF NOT EXISTS schema_version ("
                 "  id INTEGER PRIMARY KEY CHECK (id = 1),"
                 "  version INTEGER NOT NULL)"));
  RETURN_IF_ERROR(
      db.Execute("INSERT OR IGNORE INTO schema_version VALUES (1, 0)"));
  ASSIGN_OR_RETURN(Statement query,
                   db.Prepare("SELECT version FROM schema_version"));
  RETURN_IF_ERROR(query.Step().status());
  return static_cast<int>(query.Int(0));
}

}  // namespace

int SchemaVersion() { return kVersion; }

absl::Status Migrate(Database& db) {
  ASSIGN_OR_RETURN(const int version, CurrentVersion(db));
  if (version > kVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the database has schema version ", version,
        ", this program knows versions up to ", kVersion,
        ": it was written by a newer qlora-coordinator; use that one"));
  }
  for (int step = version; step < kVersion; ++step) {
    RETURN_IF_ERROR(db.Execute(absl::StrCat(
        "BEGIN IMMEDIATE;", kSteps[step],
        "UPDATE schema_version SET version = ", step + 1, "; COMMIT;")));
  }
  return absl::OkStatus();
}

}  // namespace qlora::server
