// A thin layer over SQLite's C interface: errors as Status, statements that
// bind and step. Used by one thread at a time.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qlora::server {

class Statement;

class Database {
 public:
  // Opens or creates. Unavailable or ResourceExhausted, naming the file.
  static absl::StatusOr<Database> Open(const std::string& path);

  // One or more statements without results.
  absl::Status Execute(const std::string& sql);
  absl::StatusOr<Statement> Prepare(std::string_view sql);
  // Rows that the last statement changed.
  int64_t changes() const { return sqlite3_changes64(db_.get()); }
  // The last error: ResourceExhausted for a full disk, Internal for a broken
  // constraint, else Unavailable.
  absl::Status Error(std::string_view what) const;

 private:
  struct Close {
    void operator()(sqlite3* db) const { sqlite3_close_v2(db); }
  };
  explicit Database(sqlite3* db) : db_(db) {}
  std::unique_ptr<sqlite3, Close> db_;
};

// Parameters are numbered from 1, columns from 0.
class Statement {
 public:
  Statement& Bind(int index, std::string_view text);
  Statement& BindBlob(int index, const std::string& bytes);
  Statement& Bind(int index, int64_t value);
  // True while there is a row.
  absl::StatusOr<bool> Step();
  // Steps a statement without results to its end and makes it ready for the
  // next values.
  absl::Status Run();

  std::string Text(int column) const;
  int64_t Int(int column) const {
    return sqlite3_column_int64(statement_.get(), column);
  }

 private:
  friend class Database;
  struct Finalize {
    void operator()(sqlite3_stmt* s) const { sqlite3_finalize(s); }
  };
  Statement(const Database* db, sqlite3_stmt* s) : db_(db), statement_(s) {}
  const Database* db_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
};

}  // namespace qlora::server
