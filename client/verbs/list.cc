#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

constexpr int kPageSize = 200;

std::string StateNames() {
  std::vector<std::string> names;
  for (int state = v1::JobState_MIN + 1; state <= v1::JobState_MAX; ++state) {
    names.push_back(
        absl::AsciiStrToLower(StateName(static_cast<v1::JobState>(state))));
  }
  return absl::StrJoin(names, ", ");
}

absl::StatusOr<v1::ListJobsRequest> MakeRequest(const Session& session,
                                                const ListOptions& options) {
  v1::ListJobsRequest request;
  request.set_project(session.project);
  for (const std::string& name : options.states) {
    v1::JobState state;
    if (!v1::JobState_Parse(
            absl::StrCat("JOB_STATE_", absl::AsciiStrToUpper(name)), &state) ||
        state == v1::JOB_STATE_UNSPECIFIED) {
      return UsageError(absl::StrCat("--state ", name,
                                     ": no such state; one of ", StateNames()));
    }
    request.add_states(state);
  }
  for (const std::string& label : options.labels) {
    const std::vector<std::string> parts =
        absl::StrSplit(label, absl::MaxSplits('=', 1));
    if (parts.size() != 2) {
      return UsageError(absl::StrCat("--label ", label, ": not KEY=VALUE"));
    }
    (*request.mutable_labels())[parts[0]] = parts[1];
  }
  return request;
}

}  // namespace

absl::Status ListJobs(Session& session, const ListOptions& options) {
  ASSIGN_OR_RETURN(v1::ListJobsRequest request, MakeRequest(session, options));
  v1::ListJobsResponse all;
  do {
    const int left = options.limit - all.jobs_size();
    request.set_page_size(options.limit > 0 ? std::min(left, kPageSize)
                                            : kPageSize);
    absl::StatusOr<v1::ListJobsResponse> page = session.connection().Call(
        session.connection().jobs(), &v1::JobService::Stub::ListJobs, request);
    if (!page.ok()) return WithWhat(page.status(), "cannot list the jobs");
    request.set_page_token(page->next_page_token());
    all.mutable_jobs()->MergeFrom(page->jobs());
  } while (!request.page_token().empty() &&
           (options.limit == 0 || all.jobs_size() < options.limit));
  return PrintList(session.output, all, all.jobs(), JobView(absl::Now()));
}

}  // namespace qlora::client
