#include "client/plot.h"

#include <algorithm>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "client/follower.h"
#include "client/interrupt.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

constexpr int kMaxPoints = 2000;
// Of the loss chart; the learning rate takes half of it again.
constexpr int kMaxRows = 18;

PlotStyle StyleFor(const Terminal& terminal) {
  PlotStyle style;
  style.width = terminal.width;
  style.height = terminal.out
                     ? std::clamp((terminal.height - 3) * 2 / 3, 8, kMaxRows)
                     : 14;
  style.utf8 = terminal.utf8;
  style.color = terminal.color;
  return style;
}

// Draws over the whole screen at each change, until the job ends or Ctrl-C.
absl::Status WatchPlot(Session& session, const v1::Job& job) {
  InterruptScope interrupt;
  JobFollower follower(session.connection(), job.job_id(), session.project);
  std::vector<v1::MetricPoint> points;
  v1::Job latest = job;
  bool connected = true;
  bool done = false;
  while (!done && !InterruptScope::Interrupted()) {
    JobFollower::Update update = follower.Next(absl::Milliseconds(200));
    done = update.done;
    if (done) RETURN_IF_ERROR(update.error);
    if (update.connected != connected) {
      connected = update.connected;
      std::cerr << (connected ? kBackNote : kAwayNote) << std::endl;
    }
    if (update.job) latest = *update.job;
    if (!update.job && update.points.empty() && !done) continue;
    points.insert(points.end(), update.points.begin(), update.points.end());
    // Home, the picture, then whatever is left of the last one goes.
    *session.output.out << "\x1b[H\x1b[2J" << latest.job_id() << "  "
                        << StateName(latest.state()) << "\n"
                        << DrawMetrics(points, StyleFor(DetectTerminal()))
                        << std::flush;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Plot(Session& session, const PlotOptions& options) {
  const bool drawn = !IsForPrograms(session.output.format);
  if (options.watch && (!drawn || !session.output.terminal.out)) {
    return UsageError(
        "plot -w draws on a terminal; without -w it can be piped");
  }
  if (!drawn) return PrintMetrics(session, options.job, session.output, 0);
  ASSIGN_OR_RETURN(const v1::Job job, FetchJob(session, options.job));
  if (options.watch && !IsTerminal(job.state())) return WatchPlot(session, job);
  ASSIGN_OR_RETURN(const v1::QueryMetricsResponse metrics,
                   FetchMetrics(session, job.job_id(), kMaxPoints));
  *session.output.out << job.job_id() << "  " << StateName(job.state()) << "\n"
                      << DrawMetrics(
                             {metrics.points().begin(), metrics.points().end()},
                             StyleFor(session.output.terminal));
  return absl::OkStatus();
}

}  // namespace qlora::client
