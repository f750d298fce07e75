// The database's schema, as the list of steps that made it.
#pragma once

#include "absl/status/status.h"
#include "server/store/sqlite.h"

namespace qlora::server {

// Version that Migrate leads to.
int SchemaVersion();

// Brings the database to this version, each step in its own transaction.
// FailedPrecondition if the database was made by a newer version.
absl::Status Migrate(Database& db);

}  // namespace qlora::server
