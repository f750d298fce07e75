// Shows a job on its way to the end: a live bar on a terminal, plain lines in a
// pipe.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/session.h"
#include "qlora/v1/job.pb.h"

namespace qlora::client {

struct FollowOptions {
  // Steps are shown; otherwise only states.
  bool metrics = true;
  absl::Duration timeout = absl::InfiniteDuration();
};

// Follows until the job ends, the timeout passes or Ctrl-C, which detaches and
// leaves the job alone. `job` is what is known of it: one that has ended is not
// waited for. With a format for programs the lines go to standard error and the
// job is printed once, at the end. Returns the exit code 0, 100, 101 or 103.
absl::StatusOr<int> FollowJob(Session& session, v1::Job job,
                              const FollowOptions& options);

// 0, 100 or 103 for an ended job, 101 for another.
int OutcomeExitCode(const v1::Job& job);

// "SUCCEEDED j-... after 12s with 2 warnings: 60 steps, loss 3.2 -> 1.1" and
// what to type next.
std::string OutcomeText(const v1::Job& job, double first_loss,
                        size_t warnings = 0);

// What the live bar knows of the newest step.
struct LiveStep {
  v1::MetricPoint point;
  // Since it came.
  absl::Duration age = absl::ZeroDuration();
  // Steps from one logged one to the next.
  int64_t interval = 1;
};

// The live bar's text, at most `width` columns: what matters least is left out
// first. In place of the time left it says why the job waits, or that no step
// came for long.
std::string ProgressText(const v1::Job& job,
                         const std::optional<LiveStep>& step, bool connected,
                         bool utf8, int width);

}  // namespace qlora::client
