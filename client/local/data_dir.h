// Which local instance a `local` command means.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "client/session.h"

namespace qlora::client {

// The flag if given; else what `local start` noted in the context `local`,
// while an instance is recorded there; else the default directory. Absolute.
absl::StatusOr<std::string> LocalDataDir(const Session& session,
                                         const std::string& flag);

}  // namespace qlora::client
