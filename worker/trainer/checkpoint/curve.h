// The curve of a job inside its checkpoints. Stateless.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace qlora::trainer {

// A checkpoint has about so many steps with an evaluation, and so many
// without: some 2.3 MB, however long the job.
inline constexpr int64_t kCurveLines = 4096;

// Copies metrics.jsonl, syncs the copy, gives its SHA-256. Beyond kCurveLines
// steps it keeps of each kind the first line of every two, four, ... steps, and
// the newest: what is thinned already is copied as it is. NotFound names the
// source; DataLoss a line without a step; else as FileWriter.
absl::StatusOr<std::string> CopyCurve(const std::string& from,
                                      const std::string& to);

}  // namespace qlora::trainer
