#include "client/follow.h"

#include <algorithm>
#include <iostream>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/follower.h"
#include "client/interrupt.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "common/base/plural.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);
// Evaluations and checkpoints make a pause of some steps' time too.
constexpr absl::Duration kLongPause = absl::Seconds(30);
constexpr int kLongPauseSteps = 5;

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
  }
  if (!job.reason().empty()) absl::StrAppend(&line, ": ", job.reason());
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
        for_programs_(IsForPrograms(output.format)),
        metrics_(metrics),
        live_(output.terminal.err && (output.terminal.out || for_programs_)),
        progress_(live_) {}

  void Show(const JobFollower::Update& update) {
    // What came before the break stands before the note, what came after it
    // behind.
    if (update.connected && !connected_) Note(kBackNote);
    if (update.job) ShowState(*update.job);
    ShowWarnings(update.events);
    for (const v1::MetricPoint& point : update.points) ShowPoint(point);
    if (!update.connected && connected_) Note(kAwayNote);
    connected_ = update.connected;
    if (live_ && job_ && !IsTerminal(job_->state())) {
      if (step_) step_->age = absl::Now() - step_time_;
      progress_.Show(ProgressText(*job_, step_, connected_,
                                  output_.terminal.utf8,
                                  DetectTerminal().width - 1));
    }
  }

  // Each once, though a job that is restarted warns again.
  void ShowWarnings(const std::vector<v1::JobEvent>& events) {
    for (const v1::JobEvent& event : events) {
      if (event.type() != "Warning") continue;
      if (!warnings_.insert(event.message()).second) continue;
      Line(absl::StrCat(output_.terminal.color && !for_programs_
                            ? "\x1b[33mwarning:\x1b[0m "
                            : "warning: ",
                        IndentRest(event.message(), 9)));
    }
  }

  void Line(const std::string& text) {
    progress_.Clear();
    (for_programs_ ? std::cerr : *output_.out) << text << std::endl;
  }

  // How far it has come stays readable; its state was printed before.
  void Detach() {
    progress_.Clear();
    if (live_ && job_ && step_) Note(FormatPoint(step_->point));
  }

  // What is no result goes to standard error.
  void Note(const std::string& text) {
    progress_.Clear();
    std::cerr << text << std::endl;
  }

  double first_loss() const { return first_loss_.value_or(0); }
  size_t warnings() const { return warnings_.size(); }

 private:
  void ShowPoint(const v1::MetricPoint& point) {
    if (!first_loss_) first_loss_ = point.loss();
    const int64_t before = step_ ? step_->point.step() : 0;
    if (metrics_ && step_ && point.attempt() > step_->point.attempt()) {
      const int64_t from = std::min(resume_step_, point.step() - 1);
      Line(absl::StrCat("attempt ", point.attempt(),
                        from > 0 ? absl::StrCat(" goes on from step ", from)
                                 : " starts from the beginning"));
    }
    step_ = {point, absl::ZeroDuration(),
             std::max<int64_t>(point.step() - before, 1)};
    step_time_ = absl::Now();
    if (metrics_ && !live_) Line(FormatPoint(point));
  }

  void ShowState(const v1::Job& job) {
    if (!job_ || job.attempt() != job_->attempt()) {
      resume_step_ = job.head_step();
    }
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
  // Who get the job itself on standard output, and nothing else.
  const bool for_programs_;
  const bool metrics_;
  const bool live_;
  ProgressLine progress_;
  std::optional<v1::Job> job_;
  std::optional<LiveStep> step_;
  absl::Time step_time_;
  // The newest checkpoint's when the attempt began.
  int64_t resume_step_ = 0;
  std::optional<double> first_loss_;
  std::string state_line_;
  std::set<std::string> warnings_;
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

// "ETA 1m54s", or that nothing moves.
std::string TimeLeft(const LiveStep& step) {
  const absl::Duration step_time = absl::Seconds(step.point.step_seconds());
  if (step.age >
      std::max(kLongPause, step_time * step.interval * kLongPauseSteps)) {
    return absl::StrCat("no step for ", ShortDuration(step.age));
  }
  const int64_t left = step.point.total_steps() - step.point.step();
  return absl::StrCat("ETA ", ShortDuration(step_time * left));
}

// The same step in fewer words the larger `less` is, from 0 to 5.
std::string StepText(const v1::Job& job, const LiveStep& step, bool utf8,
                     int less) {
  const v1::MetricPoint& point = step.point;
  const int64_t total = std::max<int64_t>(point.total_steps(), 1);
  const double fraction = static_cast<double>(point.step()) / total;
  std::string text;
  if (less < 4) text = Bar(fraction, less < 1 ? 24 : 10, utf8) + " ";
  absl::StrAppend(&text, point.step(), "/", total, "  loss ",
                  FormatLoss(point.loss()));
  if (less < 2) {
    absl::StrAppend(&text, "  lr ", FormatNumber(point.learning_rate()));
  }
  if (less < 3) {
    absl::StrAppendFormat(&text, "  %.0f tok/s", point.tokens_per_second());
  }
  absl::StrAppend(&text, "  ", TimeLeft(step));
  if (less < 5 && job.progress().has_eval_loss()) {
    absl::StrAppend(&text, "  eval ", FormatLoss(job.progress().eval_loss()));
  }
  return text;
}

// What it came to: for programs the job itself, once, and the exit code.
absl::StatusOr<int> Finish(const Output& output, const v1::Job& job) {
  if (IsForPrograms(output.format)) {
    RETURN_IF_ERROR(PrintOne(output, job, JobView(absl::Now())));
  }
  return OutcomeExitCode(job);
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

std::string OutcomeText(const v1::Job& job, double first_loss,
                        size_t warnings) {
  std::string text = absl::StrCat(StateName(job.state()), " ", job.job_id());
  if (job.has_start_time() && job.has_finish_time()) {
    absl::StrAppend(
        &text, " after ",
        ShortDuration(ToTime(job.finish_time()) - ToTime(job.start_time())));
  }
  if (job.state() == v1::JOB_STATE_SUCCEEDED && warnings > 0) {
    absl::StrAppend(&text, " with ",
                    Plural(static_cast<int64_t>(warnings), "warning"));
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

std::string ProgressText(const v1::Job& job,
                         const std::optional<LiveStep>& step, bool connected,
                         bool utf8, int width) {
  if (!connected) return kAwayNote;
  if (!step || job.state() != v1::JOB_STATE_RUNNING || !job.reason().empty()) {
    return StateLine(job);
  }
  constexpr int kLeast = 5;
  int less = 0;
  std::string text = StepText(job, *step, utf8, less);
  while (DisplayWidth(text) > width && less < kLeast) {
    text = StepText(job, *step, utf8, ++less);
  }
  return text;
}

absl::StatusOr<int> FollowJob(Session& session, v1::Job job,
                              const FollowOptions& options) {
  const absl::Time end = absl::Now() + options.timeout;
  const std::string id = job.job_id();
  InterruptScope interrupt;
  FollowView view(session.output, options.metrics);
  JobFollower follower(session.connection(), id, session.project);
  while (true) {
    const JobFollower::Update update = follower.Next(kTick);
    view.Show(update);
    if (update.job) job = *update.job;
    if (!update.error.ok() && update.done) {
      return WithWhat(update.error, absl::StrCat("cannot follow job ", id));
    }
    if (update.done || job.state() == v1::JOB_STATE_HELD) break;
    if (InterruptScope::Interrupted() || absl::Now() >= end) {
      // Only the last of its metrics are still on their way.
      if (IsTerminal(job.state())) break;
      view.Detach();
      NoteDetached(id, InterruptScope::Interrupted() ? "Ctrl-C" : "--timeout");
      return Finish(session.output, job);
    }
  }
  // The last ones may still be on their way in the stream.
  const absl::StatusOr<std::vector<v1::JobEvent>> events =
      FetchEvents(session, id);
  if (events.ok()) view.ShowWarnings(*events);
  view.Line(OutcomeText(job, view.first_loss(), view.warnings()));
  return Finish(session.output, job);
}

}  // namespace qlora::client
