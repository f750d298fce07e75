#include "client/job_calls.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status GetJob(Session& session, const std::string& job) {
  ASSIGN_OR_RETURN(const v1::Job found, FetchJob(session, job));
  RETURN_IF_ERROR(PrintOne(session.output, found, JobView(absl::Now())));
  if (session.output.format == OutputFormat::kTable) {
    *session.output.out << FormatTrouble(found) << std::flush;
  }
  return absl::OkStatus();
}

}  // namespace qlora::client
