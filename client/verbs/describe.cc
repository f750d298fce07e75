#include "client/job_calls.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status Describe(Session& session, const std::string& job) {
  ASSIGN_OR_RETURN(const v1::Job found, FetchJob(session, job));
  if (session.output.format != OutputFormat::kTable) {
    return PrintOne(session.output, found, JobView(absl::Now()));
  }
  ASSIGN_OR_RETURN(const std::vector<v1::JobEvent> events,
                   FetchEvents(session, found.job_id()));
  ASSIGN_OR_RETURN(const v1::ListCheckpointsResponse checkpoints,
                   FetchCheckpoints(session, found.job_id()));
  *session.output.out << DescribeJob(
      found, events,
      {checkpoints.checkpoints().begin(), checkpoints.checkpoints().end()},
      absl::Now());
  return absl::OkStatus();
}

}  // namespace qlora::client
