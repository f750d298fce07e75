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

// After the instance in data_dir was stopped: no context points at it any more.
// Says which one is current again.
absl::Status ForgetLocal(Session& session, const std::string& data_dir);

}  // namespace qlora::client
