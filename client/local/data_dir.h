// Which local instance a `local` command means.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/local/instance.h"
#include "client/session.h"

namespace qlora::client {

// The flag if given; else the instance of the chosen context; else the only one
// that any context notes; else the default directory. Absolute.
// FailedPrecondition if there are several.
absl::StatusOr<std::string> LocalDataDir(const Session& session,
                                         const std::string& flag);

// Makes the instance's context the current one and says how it is called.
absl::Status UseLocal(Session& session, const std::string& endpoint,
                      const std::string& data_dir);

// After the instance in data_dir was stopped: no context points at it any more.
// Says which one is current again.
absl::Status ForgetLocal(Session& session, const std::string& data_dir);

// For a shell: what stops an instance, and what starts it with the flags that
// it was started with.
std::string StopCommand(const Session& session, const std::string& data_dir);
std::string StartCommand(const Session& session, const std::string& data_dir,
                         const LocalInstance& instance);

// What stops the instance that the session talks to and starts it with one more
// model root; empty if `local start` did not start it.
std::string RestartCommand(const Session& session, const std::string& root);

// Addresses of dead coordinators of other local instances whose workers live
// and look for them: whoever listens there instead would end what they train.
std::vector<std::string> OrphanedEndpoints(const Session& session,
                                           const std::string& data_dir);

}  // namespace qlora::client
