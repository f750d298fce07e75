// What is on disk of attempts, so that an agent's next start hands in what the
// one before could not: <directory>/attempts/<job id>-<attempt>/record.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/agent/records.pb.h"

namespace qlora::agent {

// "<job id>-<attempt>".
std::string AttemptName(const std::string& job_id, int32_t attempt);

// Where all of the attempt's files lie, below the agent's directory.
std::string AttemptDirectory(const std::string& directory,
                             const std::string& name);

// Synced on return. Creates the attempt's directory. Errors as
// common/base/files.h.
absl::Status StoreRecord(const std::string& directory,
                         const AttemptRecord& record);

// How long ago that was; zero without a record.
absl::Duration RecordAge(const std::string& directory, const std::string& name);

// Those of a former run, without staged checkpoints that are gone. Deletes,
// with a warning, attempts whose record is absent or cannot be read.
std::vector<AttemptRecord> LoadRecords(const std::string& directory);

}  // namespace qlora::agent
