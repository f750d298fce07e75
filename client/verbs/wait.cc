#include "client/follow.h"
#include "client/job_calls.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::StatusOr<int> Wait(Session& session, const std::string& job,
                         absl::Duration timeout) {
  ASSIGN_OR_RETURN(const v1::Job found, FetchJob(session, job));
  FollowOptions options;
  options.metrics = false;
  options.timeout = timeout;
  return FollowJob(session, found, options);
}

}  // namespace qlora::client
