#include "client/job_calls.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status CheckpointList(Session& session, const std::string& job) {
  ASSIGN_OR_RETURN(const v1::ListCheckpointsResponse response,
                   FetchCheckpoints(session, job));
  return PrintList(session.output, response, response.checkpoints(),
                   CheckpointView());
}

}  // namespace qlora::client
