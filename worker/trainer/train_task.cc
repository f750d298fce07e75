#include "worker/trainer/train_task.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/files.h"
#include "common/base/plural.h"
#include "common/base/status_macros.h"
#include "worker/trainer/device.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/gang_plan.h"
#include "worker/trainer/job_setup.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/parallel/agreement.h"
#include "worker/trainer/tasks.h"

namespace qlora::trainer {
namespace {

// Matrices decay; norms and biases do not, as in transformers.
std::vector<AdamWRange> DecayRanges(const TrainableLayout& layout) {
  std::vector<AdamWRange> ranges;
  for (const TrainableTensor& t : layout.tensors) {
    const bool decay = t.shape.size() > 1;
    if (!ranges.empty() && ranges.back().decay == decay &&
        ranges.back().offset + ranges.back().size == t.offset) {
      ranges.back().size += t.size;
    } else {
      ranges.push_back({t.offset, t.size, decay});
    }
  }
  return ranges;
}

std::future<absl::StatusOr<std::string>> HashBaseInBackground(
    const std::string& directory, bool with_weights) {
  std::packaged_task<absl::StatusOr<std::string>()> hash(
      [=] { return BaseSha256(directory, with_weights); });
  auto result = hash.get_future();
  // Detached: a rank that fails early must not wait for it.
  std::thread(std::move(hash)).detach();
  return result;
}

void SetNow(google::protobuf::Timestamp* timestamp) {
  const absl::Duration now = absl::Now() - absl::UnixEpoch();
  timestamp->set_seconds(absl::ToInt64Seconds(now));
  timestamp->set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(now - absl::Seconds(timestamp->seconds()))));
}

}  // namespace

TrainTask::TrainTask(const v1::TrainerTask& task, AgentLink& link)
    : task_(task),
      link_(link),
      metrics_(absl::StrCat(task.work_directory(), "/metrics.jsonl")) {}

absl::Status TrainTask::Prepare() {
  RETURN_IF_ERROR(ReadJob());
  ASSIGN_OR_RETURN(communicator_, JoinGang(task_, link_));
  if (IsLead()) {
    base_sha256_ =
        HashBaseInBackground(task_.model_directory(), !spec_.model.random_init);
  }
  ASSIGN_OR_RETURN(data_,
                   LoadJobDataTogether(task_, spec_, model_, *communicator_));
  ASSIGN_OR_RETURN(plan_, PlanTogether(PlanInput(task_, spec_, model_, data_),
                                       *communicator_));
  ApplyPlan(plan_, spec_, options_);
  options_.clock = &clock_;
  RETURN_IF_ERROR(CheckInputs());
  RETURN_IF_ERROR(AgreeOn(*communicator_, LoadEverything()));
  RETURN_IF_ERROR(CheckStart());
  MakeLoop();
  ReportStart();
  return absl::OkStatus();
}

absl::Status TrainTask::ReadJob() {
  ASSIGN_OR_RETURN(spec_, ReadJobSpec(task_));
  ASSIGN_OR_RETURN(model_, ReadModelDescription(task_.model_directory()));
  ASSIGN_OR_RETURN(init_adapter_, OpenInitAdapter(task_, model_, spec_));
  ASSIGN_OR_RETURN(options_, MakeModelOptions(spec_, model_));
  return DiskError(
      CreateDirectories(absl::StrCat(task_.work_directory(), "/staged")));
}

absl::Status TrainTask::CheckInputs() {
  const absl::StatusOr<std::string> base =
      BaseSketch(task_.model_directory(), !spec_.model.random_init);
  RETURN_IF_ERROR(AgreeOn(*communicator_, base.status()));
  RETURN_IF_ERROR(CheckSame(
      *communicator_, "base model", *base,
      absl::StrCat("make the files in ", task_.model_directory(),
                   " the same on every node, or take an imported model as "
                   "model.base, and submit the job again")));
  state_.dataset_sha256 = DatasetSha256(data_.train);
  constexpr char kRemedy[] =
      "make data files and tokenizer the same on every node, or name the files "
      "relative to the job file so that they are uploaded with it, and submit "
      "the job again";
  RETURN_IF_ERROR(CheckSame(*communicator_, "training data",
                            state_.dataset_sha256, kRemedy));
  return CheckSame(*communicator_, "evaluation data", DatasetSha256(data_.eval),
                   kRemedy);
}

absl::Status TrainTask::CheckStart() {
  if (communicator_->size() == 1) return absl::OkStatus();
  return CheckSame(*communicator_, "adapter, model or checkpoint to start from",
                   StateSha256(state_.step, buffers()),
                   "make its files the same on every node and submit the job "
                   "again");
}

absl::Status TrainTask::LoadEverything() {
  ASSIGN_OR_RETURN(loaded_,
                   LoadedModel::Load(task_.model_directory(), spec_, model_,
                                     options_, *communicator_));
  optimizer_ = std::make_unique<AdamW>(
      AdamWOptions{.beta1 = spec_.train.adam_beta1,
                   .beta2 = spec_.train.adam_beta2,
                   .epsilon = spec_.train.adam_epsilon,
                   .weight_decay = spec_.train.weight_decay,
                   .max_grad_norm = spec_.train.max_grad_norm},
      DecayRanges(loaded_->layout()), loaded_->layout().total,
      KernelParallelFor());
  sampler_.emplace(data_.train.size(), spec_.train.global_batch_size,
                   spec_.train.seed, spec_.data.shuffle);
  state_.job_id = task_.job_id();
  state_.attempt = task_.attempt();
  state_.total_steps =
      sampler_->TotalSteps(spec_.train.epochs, spec_.train.max_steps);
  state_.world_size = communicator_->size();
  state_.seed = spec_.train.seed;
  state_.shuffle = spec_.data.shuffle;
  state_.compute_dtype = ComputeDtypeName(options_.compute_dtype);
  state_.deterministic = spec_.train.deterministic;
  state_.versions = {{"qlorad", QLORA_VERSION},
                     {"torch", std::string(TorchVersion())}};
  return task_.resume_directory().empty() ? StartFresh() : Resume();
}

absl::Status TrainTask::StartFresh() {
  if (init_adapter_) {
    RETURN_IF_ERROR(
        ReadAdapter(*init_adapter_, loaded_->layout(), loaded_->params()));
  }
  return IsLead() ? DiskError(metrics_.Start("")) : absl::OkStatus();
}

absl::Status TrainTask::Resume() {
  const std::string& directory = task_.resume_directory();
  ASSIGN_OR_RETURN(const CheckpointState resumed,
                   LoadCheckpoint(directory, loaded_->layout(),
                                  {.params = loaded_->params(),
                                   .adam_m = optimizer_->exp_avg(),
                                   .adam_v = optimizer_->exp_avg_sq()}));
  RETURN_IF_ERROR(CheckResumed(resumed));
  state_.step = resumed.step;
  state_.cursor = resumed.cursor;
  state_.tokens_trained = resumed.tokens_trained;
  state_.tokens_total = resumed.tokens_total;
  state_.first_loss = resumed.first_loss;
  if (resumed.first_loss) divergence_.BeganAt(*resumed.first_loss);
  state_.last_loss = resumed.last_loss;
  state_.best_eval_loss = resumed.best_eval_loss;
  state_.train_seconds = resumed.train_seconds;
  if (!IsLead()) return absl::OkStatus();
  return DiskError(metrics_.Start(absl::StrCat(directory, "/metrics.jsonl")));
}

absl::Status TrainTask::CheckResumed(const CheckpointState& resumed) {
  const auto differs = [&](std::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat(
        "checkpoint ", task_.resume_directory(), " was made with ",
        std::string(what), ": it cannot be resumed; submit the job anew"));
  };
  if (IsLead()) {
    ASSIGN_OR_RETURN(state_.base_sha256, base_sha256_.get());
    if (resumed.base_sha256 != state_.base_sha256) {
      return differs("other files of the base model");
    }
  }
  if (resumed.dataset_sha256 != state_.dataset_sha256) {
    return differs("other training data");
  }
  if (resumed.seed != state_.seed || resumed.shuffle != state_.shuffle) {
    return differs("another order of the data");
  }
  if (resumed.total_steps != state_.total_steps ||
      resumed.step > resumed.total_steps) {
    return differs(
        absl::StrCat(Plural(resumed.total_steps, "step"), " in all"));
  }
  if (resumed.cursor != sampler_->CursorAfter(resumed.step)) {
    return differs("another train.global_batch_size");
  }
  const bool other_type = resumed.compute_dtype != state_.compute_dtype;
  if (other_type && spec_.train.deterministic) {
    return differs(absl::StrCat("compute type ", resumed.compute_dtype,
                                ", here it is ", state_.compute_dtype,
                                ", and train.deterministic is set"));
  }
  if (other_type && IsLead()) {
    link_.Log("warning", absl::StrCat("the checkpoint was computed in ",
                                      resumed.compute_dtype, ", now it is ",
                                      state_.compute_dtype));
  }
  return absl::OkStatus();
}

GangModel TrainTask::gang_model() {
  return {.communicator = *communicator_,
          .model = loaded_->model(),
          .weights = loaded_->weights(),
          .micro_batch_size = plan_.micro_batch_size,
          .on_micro_batch = [this] { BeginMicroBatch(); }};
}

void TrainTask::BeginMicroBatch() {
  const bool in_step = phase_ == v1::TrainerProgress::PHASE_STEP;
  v1::TrainerEvent event;
  event.mutable_progress()->set_phase(phase_);
  event.mutable_progress()->set_step(state_.step + (in_step ? 1 : 0));
  link_.Send(event);
}

void TrainTask::BeginSaving() {
  const auto floats = static_cast<int64_t>(sizeof(float));
  const int64_t parameters = loaded_->layout().total * floats;
  // Parameters and two moments, hashed and written, and the output.
  int64_t bytes = 8 * parameters;
  // Save waits for the base's hash.
  if (base_sha256_.valid()) bytes += WeightBytes(task_.model_directory());
  v1::TrainerEvent event;
  event.mutable_progress()->set_phase(v1::TrainerProgress::PHASE_SAVING);
  event.mutable_progress()->set_step(state_.step);
  event.mutable_progress()->set_bytes(bytes);
  link_.Send(event);
}

void TrainTask::MakeLoop() {
  loop_ = std::make_unique<TrainLoop>(TrainLoop::Parts{
      .gang = gang_model(),
      .data = data_.train,
      .sampler = *sampler_,
      .optimizer = *optimizer_,
      .schedule = MakeSchedule(spec_.train, state_.total_steps),
      .dropout_seed = spec_.train.seed,
      .params = loaded_->params(),
      .parallel_for = KernelParallelFor(),
      .clock = clock_});
  const absl::Time now = absl::Now();
  eval_due_.emplace(spec_.eval.every, now);
  log_due_.emplace(spec_.logging.every, now);
  save_due_.emplace(spec_.checkpoint.every, now);
}

void TrainTask::ReportStart() {
  v1::TrainerEvent event;
  event.mutable_running()->set_first_step(state_.step + 1);
  event.mutable_running()->set_total_steps(state_.total_steps);
  if (IsLead()) SetDataCounts(data_, event.mutable_running()->mutable_data());
  link_.Send(event);
  if (!IsLead()) return;
  const std::string directory = absl::StrCat(task_.work_directory(), "/staged");
  link_.set_on_stage_taken([directory](int64_t step) {
    RemoveRecursively(absl::StrCat(directory, "/", step)).IgnoreError();
  });
  const DatasetStats& stats = data_.train.stats();
  link_.Log("info", absl::StrCat("training ", loaded_->layout().total,
                                 " parameters in ", state_.compute_dtype,
                                 " on ", Plural(state_.world_size, "rank"),
                                 ", ", Plural(data_.train.size(), "row"), ", ",
                                 stats.trained_tokens, " trained of ",
                                 Plural(stats.total_tokens, "token"),
                                 ", steps ", state_.step + 1, " to ",
                                 state_.total_steps, ", micro-batches of ",
                                 Plural(plan_.micro_batch_size, "row")));
  if (task_.resume_directory().empty()) {
    for (const std::string& warning : JobWarnings(spec_, model_, data_)) {
      link_.Log("warning", warning);
    }
  }
  const DatasetStats records = data_.records();
  link_.Log("info", absl::StrCat("records: ", RecordsText(records)));
  for (const std::string& message : records.bad_messages) {
    link_.Log("warning", absl::StrCat("skipped: ", message));
  }
  const int64_t more =
      records.bad - static_cast<int64_t>(records.bad_messages.size());
  if (more > 0) {
    link_.Log("warning", absl::StrCat("skipped: and ", more, " more"));
  }
}

Wishes TrainTask::WishesNow() {
  Wishes wishes{.stop = link_.stop_requested(),
                .save = link_.TakeSaveRequest()};
  if (IsLead()) {
    const absl::Time now = absl::Now();
    wishes.save |= save_due_->DueAt(now);
    wishes.evaluate = eval_due_->DueAt(now);
    wishes.log = log_due_->DueAt(now);
  }
  return wishes;
}

absl::Status TrainTask::Train() {
  while (state_.step < state_.total_steps) {
    const absl::Time begin = absl::Now();
    const double epoch = sampler_->EpochAt(state_.cursor);
    ASSIGN_OR_RETURN(const StepReport report,
                     loop_->Step(state_.step + 1, &state_.cursor, WishesNow()));
    const absl::Duration duration = absl::Now() - begin;
    timeout_ = std::max(absl::Minutes(5), 10 * duration);
    communicator_->SetTimeout(timeout_);
    RETURN_IF_ERROR(AfterStep(report, epoch, duration));
    if (report.wishes.stop && state_.step < state_.total_steps) {
      SendResult(/*stopped=*/true);
      return absl::OkStatus();
    }
  }
  return Finish();
}

absl::Status TrainTask::AfterStep(const StepReport& report, double epoch_before,
                                  absl::Duration duration) {
  state_.step = report.step;
  state_.tokens_trained += report.tokens_trained;
  state_.tokens_total += report.tokens_total;
  ++unlogged_.steps;
  unlogged_.trained += report.tokens_trained;
  unlogged_.total += report.tokens_total;
  if (report.step == 1) state_.first_loss = report.loss;
  state_.last_loss = report.loss;
  const std::string diverged =
      divergence_.After(report.step, report.loss, report.grad_norm);
  if (IsLead() && !diverged.empty()) link_.Log("warning", diverged);
  state_.train_seconds += absl::ToDoubleSeconds(duration);
  const double epoch = sampler_->EpochAt(state_.cursor);
  const bool last = report.step == state_.total_steps;
  const auto due = [&](const PeriodTrigger& trigger) {
    return trigger.DueAfter(report.step, epoch_before, epoch);
  };
  std::optional<EvalRecord> eval;
  if (data_.eval.size() > 0 &&
      (last || report.wishes.evaluate || due(*eval_due_))) {
    RETURN_IF_ERROR(Evaluate(&eval.emplace()));
  }
  if (last || eval || report.wishes.log || due(*log_due_)) {
    RETURN_IF_ERROR(LogStep(report, epoch, duration, eval));
  }
  if (!last && (report.wishes.save || report.wishes.stop || due(*save_due_))) {
    RETURN_IF_ERROR(Save(""));
  }
  return absl::OkStatus();
}

absl::Status TrainTask::Evaluate(EvalRecord* record) {
  const InPhase evaluating(&clock_, Phase::kEval);
  const bool own_set = data_.eval.size() > 0;
  phase_ = v1::TrainerProgress::PHASE_EVALUATION;
  ASSIGN_OR_RETURN(const LossSum sum,
                   own_set ? EvaluateRows(gang_model(), loaded_->params(),
                                          data_.eval, AllRows(data_.eval))
                           : EvaluateFirstBatch());
  phase_ = v1::TrainerProgress::PHASE_STEP;
  *record = {.loss = sum.loss / std::max<double>(1, sum.tokens),
             .tokens = sum.tokens,
             .data = own_set ? "eval" : "train",
             .compute_dtype = state_.compute_dtype};
  if (!std::isfinite(record->loss)) {
    return NumericalError(absl::StrCat("the evaluation after step ",
                                       state_.step, " gave loss ",
                                       record->loss));
  }
  if (own_set) {
    state_.best_eval_loss =
        std::min(record->loss, state_.best_eval_loss.value_or(record->loss));
  }
  eval_ = *record;
  eval_step_ = state_.step;
  return absl::OkStatus();
}

absl::StatusOr<LossSum> TrainTask::EvaluateFirstBatch() {
  DataCursor first;
  return EvaluateRows(gang_model(), loaded_->params(), data_.train,
                      sampler_->NextBatch(&first));
}

absl::Status TrainTask::LogStep(const StepReport& report, double epoch,
                                absl::Duration duration,
                                const std::optional<EvalRecord>& eval) {
  int64_t memory = PeakMemoryBytes();
  RETURN_IF_ERROR(communicator_->AllReduceMax({&memory, 1}));
  if (!IsLead()) return absl::OkStatus();
  const double seconds = absl::ToDoubleSeconds(duration);
  const GatherCounts counts = loaded_->counts();
  v1::TrainerEvent event;
  v1::MetricPoint& point = *event.mutable_metrics();
  point.set_step(report.step);
  point.set_epoch(epoch);
  SetNow(point.mutable_time());
  point.set_loss(report.loss);
  point.set_grad_norm(report.grad_norm);
  point.set_learning_rate(report.learning_rate);
  point.set_tokens_trained(report.tokens_trained);
  point.set_tokens_total(report.tokens_total);
  point.set_tokens_per_second(static_cast<double>(report.tokens_total) /
                              std::max(1e-9, seconds));
  point.set_step_seconds(seconds);
  point.set_memory_bytes(memory);
  point.set_planned_memory_bytes(plan_.total());
  if (eval) point.set_eval_loss(eval->loss);
  point.set_total_steps(state_.total_steps);
  point.set_attempt(task_.attempt());
  point.set_gathered_block_bytes(counts.block_bytes - counted_.block_bytes);
  point.set_gathered_blocks(counts.gathers - counted_.gathers);
  point.set_gathered_other_bytes(counts.other_bytes - counted_.other_bytes);
  counted_ = counts;
  point.set_new_steps(unlogged_.steps);
  point.set_new_tokens_trained(unlogged_.trained);
  point.set_new_tokens_total(unlogged_.total);
  unlogged_ = {};
  const auto phases = clock_.Take();
  for (size_t i = 1; i < phases.size(); ++i) {
    (*point.mutable_phase_seconds())[kPhaseNames[i]] = phases[i];
  }
  RETURN_IF_ERROR(DiskError(metrics_.Append(point)));
  link_.Send(event);
  return absl::OkStatus();
}

ConstStateBuffers TrainTask::buffers() {
  return {.params = loaded_->params(),
          .adam_m = optimizer_->exp_avg(),
          .adam_v = optimizer_->exp_avg_sq()};
}

absl::Status TrainTask::Save(const std::string& output_directory) {
  const InPhase saving(&clock_, Phase::kCheckpoint);
  BeginSaving();
  v1::TrainerEvent event;
  v1::StagedFiles& staged = *event.mutable_staged();
  staged.set_step(state_.step);
  staged.set_state_sha256(StateSha256(state_.step, buffers()));
  staged.set_final(state_.step == state_.total_steps);
  RETURN_IF_ERROR(
      RunOnLead(*communicator_, timeout_, [&] { return Stage(staged); }));
  if (IsLead()) staged.set_output_directory(output_directory);
  link_.Send(event);
  return absl::OkStatus();
}

absl::Status TrainTask::Stage(v1::StagedFiles& staged) {
  if (base_sha256_.valid()) {
    ASSIGN_OR_RETURN(state_.base_sha256, base_sha256_.get());
  }
  absl::StatusOr<StagedCheckpoint> written =
      StageCheckpoint(absl::StrCat(task_.work_directory(), "/staged"), state_,
                      loaded_->layout(), buffers(), metrics_.path());
  RETURN_IF_ERROR(DiskError(written.status()));
  staged.set_directory(written->directory);
  staged.set_manifest_sha256(written->manifest_sha256);
  return absl::OkStatus();
}

absl::Status TrainTask::WriteOutput(const std::string& directory) {
  return DiskError(WriteJobOutput(
      directory, {.job_id = task_.job_id(),
                  .spec = &spec_,
                  .model = &model_,
                  .base_directory = task_.model_directory(),
                  .modules = options_.lora.modules,
                  .layout = &loaded_->layout(),
                  .params = loaded_->params(),
                  .metrics_path = metrics_.path(),
                  .eval = eval_,
                  .records = RecordsText(data_.records()),
                  .steps = state_.step,
                  .tokens_trained = state_.tokens_trained,
                  .final_loss = state_.last_loss,
                  .world_size = state_.world_size,
                  .train_time = absl::Seconds(state_.train_seconds),
                  .finish_time = absl::Now()}));
}

void TrainTask::ReportMemory() {
  const int64_t peak = PeakMemoryBytes() >> 20;
  const int64_t planned = plan_.total() >> 20;
  link_.Log(peak > planned ? "warning" : "info",
            absl::StrCat("this rank took ", peak,
                         " MiB at most, the plan said ", planned));
}

absl::Status TrainTask::ReportWorse() {
  if (!state_.first_loss) return absl::OkStatus();
  double loss = eval_.loss;
  if (data_.eval.size() > 0) {
    // Nothing else was measured before the first step.
    const InPhase evaluating(&clock_, Phase::kEval);
    ASSIGN_OR_RETURN(const LossSum sum, EvaluateFirstBatch());
    loss = sum.loss / std::max<double>(1, sum.tokens);
  }
  const std::string worse = WorseAtEnd(*state_.first_loss, loss);
  if (IsLead() && !worse.empty()) link_.Log("warning", worse);
  return absl::OkStatus();
}

absl::Status TrainTask::Finish() {
  if (eval_step_ != state_.step) {
    EvalRecord record;
    RETURN_IF_ERROR(Evaluate(&record));
  }
  RETURN_IF_ERROR(ReportWorse());
  const std::string directory = absl::StrCat(task_.work_directory(), "/output");
  BeginSaving();
  RETURN_IF_ERROR(RunOnLead(*communicator_, timeout_,
                            [&] { return WriteOutput(directory); }));
  RETURN_IF_ERROR(Save(directory));
  ReportMemory();
  SendResult(/*stopped=*/false);
  return absl::OkStatus();
}

void TrainTask::SendResult(bool stopped) {
  v1::TrainerEvent event;
  event.mutable_result()->set_stopped(stopped);
  event.mutable_result()->set_step(state_.step);
  link_.Send(event);
}

absl::Status RunTrain(const v1::TrainerTask& task, AgentLink& link) {
  TrainTask train(task, link);
  const absl::Status prepared = train.Prepare();
  if (absl::IsCancelled(prepared)) {
    v1::TrainerEvent event;
    event.mutable_result()->set_stopped(true);
    link.Send(event);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(prepared);
  return train.Train();
}

}  // namespace qlora::trainer
