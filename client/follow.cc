#include "client/follow.h"

#include <algorithm>
#include <iostream>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/follower.h"
#include "client/interrupt.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "common/base/plural.h"

namespace qlora::client {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);

// "RUNNING on local cpu:0, cpu:1" or "QUEUED: waits for 2 devices".
std::string StateLine(const v1::Job& job) {
  std::string line = StateName(job.state());
  if (job.state() == v1::JOB_STATE_RUNNING && job.ranks_size() > 0) {
    absl::StrAppend(
        &line, " on ",
        absl::StrJoin(job.ranks(), ", ",
                      [](std::string* out, const v1::RankAssignment& rank) {
                        absl::StrAppend(out, rank.node(), " ", rank.device());
                      }));
  } else if (!job.reason().empty()) {
    absl::StrAppend(&line, ": ", job.reason());
  }
  return line;
}

// Nothing more happens to it by itself.
bool Rests(const v1::Job& job) {
  return IsTerminal(job.state()) || job.state() == v1::JOB_STATE_HELD;
}

// Keeps what was shown, so that nothing is shown twice.
class FollowView {
 public:
  FollowView(const Output& output, bool metrics)
      : output_(output),
        metrics_(metrics),
        live_(output.terminal.out && output.terminal.err),
        progress_(live_) {}

  void Show(const JobFollower::Update& update) {
    if (update.job) ShowState(*update.job);
    for (const v1::MetricPoint& point : update.points) {
      if (!first_loss_) first_loss_ = point.loss();
      last_point_ = point;
      if (metrics_ && !live_) Line(FormatPoint(point));
    }
    if (update.connected != connected_) {
      connected_ = update.connected;
      Note(connected_ ? kBackNote : kAwayNote);
    }
    if (live_ && job_ && !IsTerminal(job_->state())) {
      progress_.Show(ProgressText(*job_, last_point_ ? &*last_point_ : nullptr,
                                  connected_, output_.terminal.utf8));
    }
  }

  void Line(const std::string& text) {
    progress_.Clear();
    *output_.out << text << std::endl;
  }

  // How far it has come stays readable; its state was printed before.
  void Detach() {
    progress_.Clear();
    if (live_ && job_ && last_point_) Note(FormatPoint(*last_point_));
  }

  // What is no result goes to standard error.
  void Note(const std::string& text) {
    progress_.Clear();
    std::cerr << text << std::endl;
  }

  const std::optional<v1::Job>& job() const { return job_; }
  double first_loss() const { return first_loss_.value_or(0); }

 private:
  void ShowState(const v1::Job& job) {
    job_ = job;
    const std::string line = StateLine(job);
    if (line != state_line_ && !Rests(job)) {
      state_line_ = line;
      Line(line);
    }
    if (metrics_ && job.has_data() && !data_shown_) {
      data_shown_ = true;
      Line(DataText(job.data()));
    }
  }

  const Output& output_;
  const bool metrics_;
  const bool live_;
  ProgressLine progress_;
  std::optional<v1::Job> job_;
  std::optional<v1::MetricPoint> last_point_;
  std::optional<double> first_loss_;
  std::string state_line_;
  bool data_shown_ = false;
  bool connected_ = true;
};

// Empty if nothing is left to do, or to learn.
std::string NextCommand(const v1::Job& job) {
  const std::string& id = job.job_id();
  if (job.state() != v1::JOB_STATE_SUCCEEDED) return job.hint();
  const std::string to = job.name().empty() ? id : job.name();
  return absl::StrCat("qloractl ", job.method() == "full" ? "model" : "adapter",
                      " pull ", id, " --to ", to);
}

}  // namespace

int OutcomeExitCode(const v1::Job& job) {
  switch (job.state()) {
    case v1::JOB_STATE_SUCCEEDED:
      return kExitOk;
    case v1::JOB_STATE_FAILED:
      return kExitJobFailed;
    case v1::JOB_STATE_CANCELLED:
      return kExitJobCancelled;
    default:
      return kExitJobNotFinished;
  }
}

std::string OutcomeText(const v1::Job& job, double first_loss) {
  std::string text = absl::StrCat(StateName(job.state()), " ", job.job_id());
  if (job.has_start_time() && job.has_finish_time()) {
    absl::StrAppend(
        &text, " after ",
        ShortDuration(ToTime(job.finish_time()) - ToTime(job.start_time())));
  }
  if (job.state() == v1::JOB_STATE_FAILED ||
      job.state() == v1::JOB_STATE_HELD) {
    absl::StrAppend(&text, " (", FailureName(job.failure_class()), ")");
  }
  if (!job.reason().empty() && job.state() != v1::JOB_STATE_SUCCEEDED) {
    absl::StrAppend(&text, ": ", job.reason());
  } else if (job.progress().step() > 0) {
    absl::StrAppend(&text, ": ", Plural(job.progress().step(), "step"),
                    ", loss ");
    if (first_loss > 0) absl::StrAppend(&text, FormatLoss(first_loss), " -> ");
    absl::StrAppend(&text, FormatLoss(job.progress().loss()));
    if (job.progress().has_eval_loss()) {
      absl::StrAppend(&text, ", evaluation loss ",
                      FormatLoss(job.progress().eval_loss()));
    }
  }
  const std::string next = NextCommand(job);
  if (!next.empty()) absl::StrAppend(&text, "\nnext: ", next);
  return text;
}

std::string ProgressText(const v1::Job& job, const v1::MetricPoint* point,
                         bool connected, bool utf8) {
  if (!connected) return kAwayNote;
  if (point == nullptr || job.state() != v1::JOB_STATE_RUNNING) {
    return StateLine(job);
  }
  const int64_t total = std::max<int64_t>(point->total_steps(), 1);
  const double fraction = static_cast<double>(point->step()) / total;
  const absl::Duration eta =
      absl::Seconds(point->step_seconds()) * (total - point->step());
  std::string text = absl::StrFormat(
      "%s %d/%d  loss %s  lr %s  %.0f tok/s  ETA %s", Bar(fraction, 24, utf8),
      point->step(), total, FormatLoss(point->loss()),
      FormatNumber(point->learning_rate()), point->tokens_per_second(),
      ShortDuration(eta));
  if (job.progress().has_eval_loss()) {
    absl::StrAppend(&text, "  eval ", FormatLoss(job.progress().eval_loss()));
  }
  return text;
}

absl::StatusOr<int> FollowJob(Session& session, const std::string& job,
                              const FollowOptions& options) {
  const absl::Time end = absl::Now() + options.timeout;
  InterruptScope interrupt;
  FollowView view(session.output, options.metrics);
  JobFollower follower(session.connection(), job, session.project,
                       /*metrics=*/true);
  while (true) {
    const JobFollower::Update update = follower.Next(kTick);
    view.Show(update);
    if (!update.error.ok() && update.done) {
      return WithWhat(update.error, absl::StrCat("cannot follow job ", job));
    }
    if (update.done || (view.job() && Rests(*view.job()) &&
                        !IsTerminal(view.job()->state()))) {
      break;
    }
    if (InterruptScope::Interrupted() || absl::Now() >= end) {
      view.Detach();
      NoteDetached(job, InterruptScope::Interrupted() ? "Ctrl-C" : "--timeout");
      return kExitJobNotFinished;
    }
  }
  view.Line(OutcomeText(*view.job(), view.first_loss()));
  return OutcomeExitCode(*view.job());
}

}  // namespace qlora::client
