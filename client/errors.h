// What a failed command prints and how it exits.
//
//   error: what could not be done
//   cause: why
//   hint: a command to type
//
// A Status carries the cause as its message; what and hint ride along as
// payloads, so that every layer can add what it knows and none throws away what
// a lower one said. Values only; thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qlora::client {

// docs/cli.md lists them.
enum ExitCode {
  kExitOk = 0,
  kExitError = 1,
  kExitUsage = 2,
  kExitNotFound = 3,
  kExitAuth = 4,
  kExitUnavailable = 5,
  kExitValidation = 6,
  kExitConflict = 7,
  kExitJobFailed = 100,
  kExitJobNotFinished = 101,
  kExitJobCancelled = 103,
};

// The exit code of a command that ended with this status.
int ExitCodeFor(const absl::Status& status);

// Says what could not be done; the status' message becomes the cause. The
// innermost words win: a status that says it already stays as it is.
absl::Status WithWhat(absl::Status status, const std::string& what);

// Adds the command to type, unless one is there.
absl::Status WithHint(absl::Status status, const std::string& command);

// A word of a command to type, quoted where a shell would change it.
std::string ShellWord(const std::string& word);

// A mistake on the command line: exit code 2.
absl::Status UsageError(const std::string& message);

// The lines described above, with a line break at the end. Further lines of a
// cause are indented below its first.
std::string FormatError(const absl::Status& status);

}  // namespace qlora::client
