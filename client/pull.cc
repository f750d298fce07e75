#include "client/pull.h"

#include "absl/strings/str_cat.h"
#include "client/errors.h"
#include "client/render.h"
#include "client/transfer.h"
#include "common/base/plural.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status PullOutput(Session& session, const v1::Job& job,
                        const PullOptions& options) {
  if (job.output_size() == 0) {
    return WithHint(
        WithWhat(absl::FailedPreconditionError(
                     absl::StrCat("it is ", StateName(job.state()))),
                 absl::StrCat("job ", job.job_id(), " has no output")),
        absl::StrCat(
            IsTerminal(job.state()) ? "qloractl describe " : "qloractl wait ",
            job.job_id()));
  }
  return PullFiles(session, job.output(), options);
}

absl::Status PullFiles(
    Session& session,
    const google::protobuf::RepeatedPtrField<v1::ArtifactFile>& files,
    const PullOptions& options) {
  ProgressLine progress(session.output.terminal.err);
  RETURN_IF_ERROR(PullDirectory(session.connection(),
                                {files.begin(), files.end()}, options.to,
                                options.force, progress));
  int64_t bytes = 0;
  for (const v1::ArtifactFile& file : files) bytes += file.size_bytes();
  *session.output.out << options.to << ": " << Plural(files.size(), "file")
                      << ", " << FormatBytes(bytes) << ", digests checked\n";
  return absl::OkStatus();
}

}  // namespace qlora::client
