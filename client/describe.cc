// DescribeJob, FormatTrouble and FormatPlan: many lines about one thing.
#include <algorithm>
#include <cctype>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/render.h"
#include "common/base/plural.h"

namespace qlora::client {
namespace {

void AppendField(std::string* text, const std::string& name,
                 const std::string& value) {
  if (!value.empty())
    absl::StrAppendFormat(text, "%-14s%s\n", name + ":", IndentRest(value, 14));
}

std::string Indented(const std::string& text) {
  std::string indented;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!line.empty()) absl::StrAppend(&indented, "  ", line, "\n");
  }
  return indented;
}

std::string ProgressText(const v1::Job& job) {
  const v1::JobProgress& progress = job.progress();
  if (progress.total_steps() == 0) return "";
  std::string text =
      absl::StrFormat("step %d of %d, epoch %.2f", progress.step(),
                      progress.total_steps(), progress.epoch());
  if (progress.step() > 0) {
    absl::StrAppend(&text, ", loss ", FormatLoss(progress.loss()));
  }
  if (progress.has_eval_loss()) {
    absl::StrAppend(&text, ", evaluation loss ",
                    FormatLoss(progress.eval_loss()));
  }
  if (progress.has_eta() && job.state() == v1::JOB_STATE_RUNNING) {
    absl::StrAppend(&text, ", about ",
                    ShortDuration(absl::Seconds(progress.eta().seconds())),
                    " left");
  }
  return text;
}

std::string StateText(const v1::Job& job) {
  std::string text = StateName(job.state());
  if (job.failure_class() != v1::FAILURE_CLASS_UNSPECIFIED) {
    absl::StrAppend(&text, " (", FailureName(job.failure_class()), ")");
  }
  return text;
}

// What went wrong before, unless the reason says it already.
std::string LastFailureText(const v1::Job& job) {
  const v1::AttemptFailure& failure = job.last_failure();
  if (absl::StrContains(job.reason(), failure.message())) return "";
  return absl::StrFormat("attempt %d, %s (%s): %s", failure.attempt(),
                         FormatTime(failure.has_time(), failure.time()),
                         FailureName(failure.failure_class()),
                         failure.message());
}

std::string LabelText(const v1::Job& job) {
  std::vector<std::string> labels;
  for (const auto& [key, value] : job.labels()) {
    labels.push_back(absl::StrCat(key, "=", value));
  }
  std::sort(labels.begin(), labels.end());
  return absl::StrJoin(labels, ", ");
}

std::string RankTable(const v1::Job& job) {
  Table table({{"RANK", true}, {"NODE"}, {"DEVICE"}});
  for (const v1::RankAssignment& rank : job.ranks()) {
    table.AddRow({absl::StrCat(rank.rank()), rank.node(), rank.device()});
  }
  return table.Format(/*color=*/false);
}

std::string OutputTable(const v1::Job& job) {
  Table table({{"FILE"}, {"SIZE", true}, {"SHA256"}});
  for (const v1::ArtifactFile& file : job.output()) {
    table.AddRow({file.path(), FormatBytes(file.size_bytes()), file.sha256()});
  }
  return table.Format(/*color=*/false);
}

void AppendSection(std::string* text, const std::string& title,
                   const std::string& body) {
  absl::StrAppend(text, "\n", title, ":\n", Indented(body));
}

constexpr size_t kEventsShown = 20;

// Digits within a word are part of a name, as in n2.
std::string WithoutNumbers(absl::string_view text) {
  std::vector<absl::string_view> words = absl::StrSplit(text, ' ');
  std::erase_if(words, [](absl::string_view word) {
    return std::ranges::all_of(word, [](unsigned char c) {
      return std::isdigit(c) != 0 || std::ispunct(c) != 0;
    });
  });
  return absl::StrJoin(words, " ");
}

// The same thing again, of another step or size.
bool Repeats(const v1::JobEvent& before, const v1::JobEvent& event) {
  return before.type() == event.type() && before.attempt() == event.attempt() &&
         WithoutNumbers(before.message()) == WithoutNumbers(event.message());
}

// The last of each row of repeated events, with "(x37 over 5m00s)".
std::vector<v1::JobEvent> Gathered(const std::vector<v1::JobEvent>& events) {
  std::vector<v1::JobEvent> gathered;
  for (size_t i = 0; i < events.size();) {
    const size_t first = i++;
    while (i < events.size() && Repeats(events[first], events[i])) ++i;
    gathered.push_back(events[i - 1]);
    if (i - first == 1) continue;
    absl::StrAppend(gathered.back().mutable_message(), " (x", i - first,
                    " over ",
                    ShortDuration(ToTime(events[i - 1].time()) -
                                  ToTime(events[first].time())),
                    ")");
  }
  return gathered;
}

std::string EventsSection(const v1::Job& job,
                          const std::vector<v1::JobEvent>& events) {
  const std::vector<v1::JobEvent> all = Gathered(events);
  const size_t shown = std::min(all.size(), kEventsShown);
  std::string text;
  AppendSection(
      &text,
      shown == all.size()
          ? "Events"
          : absl::StrCat("Events (the newest of ", events.size(),
                         "; all: qloractl events ", job.job_id(), ")"),
      FormatTable(EventView(),
                  std::vector<v1::JobEvent>(all.end() - shown, all.end()),
                  false, false));
  return text;
}

// Of v1::DataCounts or v1::PlanJobResponse.
template <typename Counts>
std::string RecordsText(const Counts& counts) {
  std::string text = absl::StrCat(counts.records(), " read");
  const auto add = [&](int64_t count, const char* what) {
    if (count > 0) absl::StrAppend(&text, ", ", count, " ", what);
  };
  add(counts.bad_records(), "bad (skipped)");
  add(counts.truncated_records(), "truncated");
  add(counts.split_records(), "split");
  add(counts.dropped_records(), "dropped");
  return text;
}

template <typename Counts>
std::string RowsText(const Counts& counts) {
  return absl::StrCat(counts.rows(), " to train, ", counts.eval_rows(),
                      " to evaluate");
}

}  // namespace

std::string DataText(const v1::DataCounts& data) {
  return absl::StrCat("records: ", RecordsText(data),
                      "; rows: ", RowsText(data));
}

std::string DescribeJob(const v1::Job& job,
                        const std::vector<v1::JobEvent>& events,
                        const std::vector<v1::Checkpoint>& checkpoints,
                        absl::Time now) {
  std::string text;
  AppendField(&text, "Id", job.job_id());
  AppendField(&text, "Name", job.name());
  AppendField(&text, "Project", job.project());
  AppendField(&text, "Labels", LabelText(job));
  AppendField(&text, "Method", job.method());
  AppendField(&text, "State", StateText(job));
  AppendField(&text, "Reason", job.reason());
  AppendField(&text, "Hint", job.hint());
  AppendField(&text, "Last failure", LastFailureText(job));
  AppendField(&text, "Priority", absl::StrCat(job.priority()));
  AppendField(&text, "Attempt",
              absl::StrCat(job.attempt(), " (",
                           Plural(job.restarts(), "restart"), ")"));
  AppendField(&text, "Created",
              FormatTime(job.has_create_time(), job.create_time()));
  AppendField(&text, "Started",
              FormatTime(job.has_start_time(), job.start_time()));
  AppendField(&text, "Finished",
              FormatTime(job.has_finish_time(), job.finish_time()));
  if (job.state() == v1::JOB_STATE_BACKOFF && job.has_backoff_until()) {
    AppendField(
        &text, "Next attempt",
        absl::StrCat("in ", ShortDuration(ToTime(job.backoff_until()) - now)));
  }
  if (job.has_data()) {
    AppendField(&text, "Records", RecordsText(job.data()));
    AppendField(&text, "Rows", RowsText(job.data()));
  }
  AppendField(&text, "Progress", ProgressText(job));
  if (job.ranks_size() > 0) AppendSection(&text, "Ranks", RankTable(job));
  if (!checkpoints.empty()) {
    AppendSection(&text, "Checkpoints",
                  FormatTable(CheckpointView(), checkpoints, false, false));
  }
  if (job.output_size() > 0) AppendSection(&text, "Output", OutputTable(job));
  if (!events.empty()) text += EventsSection(job, events);
  AppendSection(&text, "Job file", job.job_file());
  return text;
}

std::string FormatTrouble(const v1::Job& job) {
  if (job.state() != v1::JOB_STATE_HELD &&
      job.state() != v1::JOB_STATE_FAILED) {
    return "";
  }
  std::string text =
      absl::StrCat("reason: ", IndentRest(job.reason(), 8), "\n");
  if (!job.hint().empty()) absl::StrAppend(&text, "hint: ", job.hint(), "\n");
  return text;
}

std::string FormatPlan(const v1::PlanJobResponse& plan) {
  std::string text;
  AppendField(&text, "Records", RecordsText(plan));
  AppendField(&text, "Rows", RowsText(plan));
  AppendField(&text, "Steps", absl::StrCat(plan.total_steps()));
  AppendField(
      &text, "Tokens",
      absl::StrCat(plan.tokens_total_per_epoch(), " an epoch, ",
                   plan.tokens_trained_per_epoch(), " of them trained"));
  AppendField(&text, "Parameters",
              absl::StrCat(plan.trainable_parameters(), " trained of ",
                           plan.total_parameters()));
  AppendField(&text, "Compute", plan.compute_dtype());
  const auto layers = [&](const char* memory) {
    return std::count(plan.activation_plan().begin(),
                      plan.activation_plan().end(), memory);
  };
  AppendField(&text, "Layers",
              absl::StrCat(layers("keep"), " kept, ", layers("recompute-mlp"),
                           " with the MLP recomputed, ", layers("recompute"),
                           " recomputed"));
  Table memory({{"MEMORY PER RANK"}, {"BYTES", true}});
  for (const v1::MemoryPlanItem& item : plan.memory()) {
    memory.AddRow({item.what(), FormatBytes(item.bytes())});
  }
  memory.AddRow({"total", FormatBytes(plan.memory_bytes_per_rank())});
  absl::StrAppend(&text, "\n", memory.Format(/*color=*/false), "\n");
  for (const std::string& warning : plan.warnings()) {
    AppendField(&text, "Warning", warning);
  }
  if (plan.does_not_fit().empty()) {
    AppendField(&text, "Fits on", absl::StrJoin(plan.fits_on(), ", "));
  } else {
    AppendField(&text, "Does not fit", plan.does_not_fit());
  }
  return text;
}

}  // namespace qlora::client
