#include "server/store/sqlite_store.h"

#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "server/store/migrations.h"

namespace qlora::server {
namespace {

// Results of mutating calls are kept for so long.
constexpr absl::Duration kKeepRequests = absl::Hours(24 * 7);

std::string NewClusterId() {
  std::random_device random;
  std::string id = "c-";
  for (int i = 0; i < 4; ++i) {
    absl::StrAppend(&id, absl::Hex(random(), absl::kZeroPad8));
  }
  return id;
}

// 2^32 numbers to choose from: store.h says why.
int64_t TermAfter(int64_t term) {
  return term + 1 + static_cast<int64_t>(std::random_device{}());
}

// Rows of "SELECT record FROM ..." as messages.
template <typename Record, typename F>
absl::Status ForEachRecord(Database& db, std::string_view sql, F f) {
  ASSIGN_OR_RETURN(Statement query, db.Prepare(sql));
  while (true) {
    ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::OkStatus();
    Record record;
    if (!record.ParseFromString(query.Text(0))) {
      return absl::DataLossError(
          absl::StrCat("database: a record cannot be read (",
                       absl::string_view(sql.data(), sql.size()), ")"));
    }
    f(std::move(record));
  }
}

// Puts or deletes rows of a table (name, record).
template <typename Changes>
absl::Status WriteNamed(Database& db, const std::string& table,
                        const Changes& changes) {
  if (changes.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(Statement put,
                   db.Prepare(absl::StrCat(
                       "INSERT INTO ", table,
                       "(name, record) VALUES (?1, ?2) ON CONFLICT(name) "
                       "DO UPDATE SET record = excluded.record")));
  ASSIGN_OR_RETURN(
      Statement erase,
      db.Prepare(absl::StrCat("DELETE FROM ", table, " WHERE name = ?1")));
  for (const auto& [name, value] : changes) {
    if (value) {
      RETURN_IF_ERROR(
          put.Bind(1, name).BindBlob(2, value->SerializeAsString()).Run());
    } else {
      RETURN_IF_ERROR(erase.Bind(1, name).Run());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SqliteStore>> SqliteStore::Open(
    const std::string& path) {
  ASSIGN_OR_RETURN(Database db, Database::Open(path));
  RETURN_IF_ERROR(
      db.Execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                 "PRAGMA foreign_keys = ON;"));
  RETURN_IF_ERROR(Migrate(db));
  return std::unique_ptr<SqliteStore>(new SqliteStore(std::move(db)));
}

absl::StatusOr<std::string> SqliteStore::Meta(const std::string& key) {
  ASSIGN_OR_RETURN(Statement query,
                   db_.Prepare("SELECT value FROM meta WHERE key = ?1"));
  ASSIGN_OR_RETURN(const bool row, query.Bind(1, key).Step());
  return row ? query.Text(0) : std::string();
}

absl::Status SqliteStore::SetMeta(const std::string& key,
                                  const std::string& value) {
  ASSIGN_OR_RETURN(Statement put,
                   db_.Prepare("INSERT OR REPLACE INTO meta VALUES (?1, ?2)"));
  return put.Bind(1, key).Bind(2, value).Run();
}

absl::Status SqliteStore::TakeLead(State& state) {
  RETURN_IF_ERROR(db_.Execute("BEGIN IMMEDIATE"));
  ASSIGN_OR_RETURN(state.cluster_id, Meta("cluster_id"));
  if (state.cluster_id.empty()) {
    state.cluster_id = NewClusterId();
    RETURN_IF_ERROR(SetMeta("cluster_id", state.cluster_id));
  }
  ASSIGN_OR_RETURN(const std::string term, Meta("term"));
  state.term = 0;
  (void)absl::SimpleAtoi(term, &state.term);
  state.term = TermAfter(state.term);
  RETURN_IF_ERROR(SetMeta("term", absl::StrCat(state.term)));
  RETURN_IF_ERROR(db_.Execute("COMMIT"));
  term_ = state.term;
  return absl::OkStatus();
}

absl::StatusOr<State> SqliteStore::Load() {
  State state;
  RETURN_IF_ERROR(TakeLead(state));
  RETURN_IF_ERROR(ForEachRecord<JobRecord>(
      db_, "SELECT record FROM jobs", [&](JobRecord record) {
        const std::string id = record.job().job_id();
        state.jobs[id].record = std::move(record);
      }));
  RETURN_IF_ERROR(ForEachRecord<AttemptRecord>(
      db_, "SELECT record FROM attempts", [&](AttemptRecord record) {
        const AttemptKey key{record.job_id(), record.attempt()};
        state.attempts[key] = std::move(record);
      }));
  RETURN_IF_ERROR(ForEachRecord<NodeRecord>(
      db_, "SELECT record FROM nodes", [&](NodeRecord record) {
        const std::string name = record.node().name();
        state.nodes[name].record = std::move(record);
      }));
  // Acknowledged numbers stand in a column of their own: they change often.
  ASSIGN_OR_RETURN(Statement events,
                   db_.Prepare("SELECT name, last_event FROM nodes"));
  while (true) {
    ASSIGN_OR_RETURN(const bool row, events.Step());
    if (!row) break;
    state.nodes[events.Text(0)].record.set_last_event(events.Int(1));
  }
  RETURN_IF_ERROR(ForEachRecord<qlora::v1::Checkpoint>(
      db_, "SELECT record FROM checkpoints", [&](qlora::v1::Checkpoint c) {
        const CheckpointKey key{c.job_id(), c.step()};
        state.checkpoints[key] = std::move(c);
      }));
  RETURN_IF_ERROR(ForEachRecord<qlora::v1::Model>(
      db_, "SELECT record FROM models", [&](qlora::v1::Model model) {
        const std::string name = model.name();
        state.models[name] = std::move(model);
      }));
  RETURN_IF_ERROR(ForEachRecord<qlora::v1::Dataset>(
      db_, "SELECT record FROM datasets", [&](qlora::v1::Dataset dataset) {
        const std::string name = dataset.name();
        state.datasets[name] = std::move(dataset);
      }));
  ASSIGN_OR_RETURN(
      Statement outbox,
      db_.Prepare("SELECT command, node FROM outbox ORDER BY node, number"));
  while (true) {
    ASSIGN_OR_RETURN(const bool row, outbox.Step());
    if (!row) break;
    qlora::v1::WorkerCommand command;
    if (!command.ParseFromString(outbox.Text(0))) {
      return absl::DataLossError("database: a command cannot be read");
    }
    // Resent in this term: a worker refuses older ones.
    command.set_term(state.term);
    state.outbox[outbox.Text(1)].push_back(
        std::make_shared<const qlora::v1::WorkerCommand>(std::move(command)));
  }
  return state;
}

absl::Status SqliteStore::CheckTerm() {
  ASSIGN_OR_RETURN(const std::string term, Meta("term"));
  if (term != absl::StrCat(term_)) {
    return absl::AbortedError(
        absl::StrCat("another coordinator leads since term ", term,
                     "; this one has term ", term_, " and must stop"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> SqliteStore::RaiseTerm(int64_t seen) {
  const int64_t term = TermAfter(seen);
  RETURN_IF_ERROR(db_.Execute("BEGIN IMMEDIATE"));
  absl::Status status = CheckTerm();
  if (status.ok()) status = SetMeta("term", absl::StrCat(term));
  if (status.ok()) status = db_.Execute("COMMIT");
  if (!status.ok()) {
    (void)db_.Execute("ROLLBACK");
    return status;
  }
  return term_ = term;
}

absl::Status SqliteStore::Commit(const Transaction& transaction) {
  RETURN_IF_ERROR(db_.Execute("BEGIN IMMEDIATE"));
  absl::Status status = Write(transaction);
  if (status.ok()) status = db_.Execute("COMMIT");
  // A commit that failed may have ended the transaction already.
  if (!status.ok()) (void)db_.Execute("ROLLBACK");
  return status;
}

absl::Status SqliteStore::Write(const Transaction& transaction) {
  RETURN_IF_ERROR(CheckTerm());
  if (transaction.draft != nullptr) {
    const Draft& draft = *transaction.draft;
    RETURN_IF_ERROR(WriteJobs(draft));
    RETURN_IF_ERROR(WriteAttempts(draft));
    RETURN_IF_ERROR(WriteNodes(draft));
    RETURN_IF_ERROR(WriteCheckpoints(draft));
    RETURN_IF_ERROR(WriteNamed(db_, "models", draft.models.changes()));
    RETURN_IF_ERROR(WriteNamed(db_, "datasets", draft.datasets.changes()));
  }
  RETURN_IF_ERROR(WriteAcks(transaction));
  if (!transaction.request) return absl::OkStatus();
  const int64_t now = absl::ToUnixSeconds(transaction.now);
  ASSIGN_OR_RETURN(Statement old,
                   db_.Prepare("DELETE FROM requests WHERE time < ?1"));
  RETURN_IF_ERROR(old.Bind(1, now - absl::ToInt64Seconds(kKeepRequests)).Run());
  ASSIGN_OR_RETURN(Statement put,
                   db_.Prepare("INSERT INTO requests VALUES (?1, ?2, ?3, ?4)"));
  return put.Bind(1, transaction.request->request_id)
      .Bind(2, transaction.request->digest)
      .BindBlob(3, transaction.request->response)
      .Bind(4, now)
      .Run();
}

absl::Status SqliteStore::WriteJobs(const Draft& draft) {
  if (draft.jobs.changes().empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(
      Statement project,
      db_.Prepare("INSERT OR IGNORE INTO projects VALUES (?1, ?2)"));
  ASSIGN_OR_RETURN(
      Statement put,
      db_.Prepare("INSERT INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) "
                  "ON CONFLICT(id) DO UPDATE SET state = excluded.state, "
                  "attempt = excluded.attempt, head_step = excluded.head_step, "
                  "record = excluded.record"));
  ASSIGN_OR_RETURN(Statement erase,
                   db_.Prepare("DELETE FROM jobs WHERE id = ?1"));
  for (const auto& [id, job] : draft.jobs.changes()) {
    if (!job) {
      RETURN_IF_ERROR(erase.Bind(1, id).Run());
      continue;
    }
    const qlora::v1::Job& view = job->job();
    RETURN_IF_ERROR(project.Bind(1, view.project())
                        .Bind(2, absl::ToUnixSeconds(draft.now))
                        .Run());
    RETURN_IF_ERROR(put.Bind(1, id)
                        .Bind(2, view.project())
                        .Bind(3, view.name())
                        .Bind(4, int64_t{view.state()})
                        .Bind(5, int64_t{view.attempt()})
                        .Bind(6, view.head_step())
                        .BindBlob(7, job->record.SerializeAsString())
                        .Run());
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::WriteAttempts(const Draft& draft) {
  if (draft.attempts.changes().empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(
      Statement put,
      db_.Prepare(
          "INSERT INTO attempts VALUES (?1, ?2, ?3, ?4, ?5) "
          "ON CONFLICT(job, attempt) DO UPDATE SET state = excluded.state, "
          "record = excluded.record"));
  ASSIGN_OR_RETURN(
      Statement release,
      db_.Prepare("DELETE FROM reservations WHERE job = ?1 AND attempt = ?2"));
  ASSIGN_OR_RETURN(
      Statement erase,
      db_.Prepare("DELETE FROM attempts WHERE job = ?1 AND attempt = ?2"));
  // What ends first: its devices may be another's in the same transaction.
  for (const bool ended : {true, false}) {
    for (const auto& [key, attempt] : draft.attempts.changes()) {
      if ((!attempt || IsTerminal(attempt->state())) != ended) continue;
      if (!attempt) {
        RETURN_IF_ERROR(
            erase.Bind(1, key.first).Bind(2, int64_t{key.second}).Run());
        RETURN_IF_ERROR(
            release.Bind(1, key.first).Bind(2, int64_t{key.second}).Run());
        continue;
      }
      RETURN_IF_ERROR(put.Bind(1, key.first)
                          .Bind(2, int64_t{key.second})
                          .Bind(3, int64_t{attempt->state()})
                          .Bind(4, attempt->term())
                          .BindBlob(5, attempt->SerializeAsString())
                          .Run());
      RETURN_IF_ERROR(
          release.Bind(1, key.first).Bind(2, int64_t{key.second}).Run());
      if (!ended) RETURN_IF_ERROR(Reserve(*attempt));
    }
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::Reserve(const AttemptRecord& attempt) {
  ASSIGN_OR_RETURN(
      Statement reserve,
      db_.Prepare("INSERT INTO reservations VALUES (?1, ?2, ?3, ?4)"));
  for (const auto& rank : attempt.ranks()) {
    RETURN_IF_ERROR(reserve.Bind(1, rank.node())
                        .Bind(2, rank.device())
                        .Bind(3, attempt.job_id())
                        .Bind(4, int64_t{attempt.attempt()})
                        .Run());
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::WriteNodes(const Draft& draft) {
  ASSIGN_OR_RETURN(
      Statement put,
      db_.Prepare(
          "INSERT INTO nodes VALUES (?1, ?2, ?3) ON CONFLICT(name) DO UPDATE "
          "SET last_event = excluded.last_event, "
          "record = excluded.record"));
  ASSIGN_OR_RETURN(Statement erase,
                   db_.Prepare("DELETE FROM nodes WHERE name = ?1"));
  ASSIGN_OR_RETURN(Statement unsend,
                   db_.Prepare("DELETE FROM outbox WHERE node = ?1"));
  for (const auto& [name, node] : draft.nodes.changes()) {
    if (!node) {
      RETURN_IF_ERROR(erase.Bind(1, name).Run());
      RETURN_IF_ERROR(unsend.Bind(1, name).Run());
      continue;
    }
    RETURN_IF_ERROR(
        put.Bind(1, name)
            .Bind(2, static_cast<int64_t>(node->record.last_event()))
            .BindBlob(3, node->record.SerializeAsString())
            .Run());
  }
  ASSIGN_OR_RETURN(Statement send,
                   db_.Prepare("INSERT INTO outbox VALUES (?1, ?2, ?3)"));
  for (const auto& [node, command] : draft.commands) {
    RETURN_IF_ERROR(send.Bind(1, node)
                        .Bind(2, static_cast<int64_t>(command->number()))
                        .BindBlob(3, command->SerializeAsString())
                        .Run());
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::WriteCheckpoints(const Draft& draft) {
  if (draft.checkpoints.changes().empty()) return absl::OkStatus();
  // The job's row already has the new head: an older attempt or step than the
  // job's own inserts nothing.
  ASSIGN_OR_RETURN(
      Statement put,
      db_.Prepare("INSERT OR REPLACE INTO checkpoints "
                  "SELECT ?1, ?2, ?3, ?4 FROM jobs "
                  "WHERE id = ?1 AND attempt = ?3 AND head_step = ?2"));
  ASSIGN_OR_RETURN(
      Statement set_aside,
      db_.Prepare(
          "UPDATE checkpoints SET record = ?3 WHERE job = ?1 AND step = ?2"));
  ASSIGN_OR_RETURN(
      Statement erase,
      db_.Prepare("DELETE FROM checkpoints WHERE job = ?1 AND step = ?2"));
  for (const auto& [key, checkpoint] : draft.checkpoints.changes()) {
    if (!checkpoint) {
      RETURN_IF_ERROR(erase.Bind(1, key.first).Bind(2, key.second).Run());
      continue;
    }
    if (checkpoint->state() != qlora::v1::CHECKPOINT_STATE_COMMITTED) {
      RETURN_IF_ERROR(set_aside.Bind(1, key.first)
                          .Bind(2, key.second)
                          .BindBlob(3, checkpoint->SerializeAsString())
                          .Run());
      continue;
    }
    RETURN_IF_ERROR(put.Bind(1, key.first)
                        .Bind(2, key.second)
                        .Bind(3, int64_t{checkpoint->attempt()})
                        .BindBlob(4, checkpoint->SerializeAsString())
                        .Run());
    if (db_.changes() == 0) {
      return absl::AbortedError(
          absl::StrCat("checkpoint ", key.second, " of ", key.first,
                       " was superseded by a newer attempt or step"));
    }
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::WriteAcks(const Transaction& transaction) {
  ASSIGN_OR_RETURN(
      Statement event,
      db_.Prepare("UPDATE nodes SET last_event = ?2 WHERE name = ?1"));
  for (const auto& [node, number] : transaction.events) {
    RETURN_IF_ERROR(
        event.Bind(1, node).Bind(2, static_cast<int64_t>(number)).Run());
  }
  ASSIGN_OR_RETURN(
      Statement command,
      db_.Prepare("DELETE FROM outbox WHERE node = ?1 AND number <= ?2"));
  for (const auto& [node, number] : transaction.command_acks) {
    RETURN_IF_ERROR(
        command.Bind(1, node).Bind(2, static_cast<int64_t>(number)).Run());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<RequestResult>> SqliteStore::FindRequest(
    const std::string& request_id) {
  ASSIGN_OR_RETURN(
      Statement query,
      db_.Prepare("SELECT digest, response FROM requests WHERE id = ?1"));
  ASSIGN_OR_RETURN(const bool row, query.Bind(1, request_id).Step());
  if (!row) return std::optional<RequestResult>();
  return std::optional<RequestResult>(
      {request_id, query.Text(0), query.Text(1)});
}

absl::Status SqliteStore::CheckWritable() {
  RETURN_IF_ERROR(db_.Execute("BEGIN IMMEDIATE"));
  absl::Status status = SetMeta("last_check", absl::StrCat(term_));
  if (status.ok()) status = db_.Execute("COMMIT");
  if (!status.ok()) (void)db_.Execute("ROLLBACK");
  return status;
}

}  // namespace qlora::server
