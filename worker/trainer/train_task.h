// Mode TRAIN of one rank: prepares a job, trains it, saves checkpoints and
// leaves the output. Used by one thread.
#pragma once

#include <future>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/spec/job_spec.h"
#include "common/spec/memory_plan.h"
#include "common/spec/model_description.h"
#include "qlora/v1/trainer.pb.h"
#include "worker/trainer/agent_link.h"
#include "worker/trainer/checkpoint/adapter.h"
#include "worker/trainer/checkpoint/checkpoint.h"
#include "worker/trainer/checkpoint/job_output.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/divergence.h"
#include "worker/trainer/loaded_model.h"
#include "worker/trainer/metrics_file.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/period_trigger.h"
#include "worker/trainer/train_loop.h"

namespace qlora::trainer {

class TrainTask {
 public:
  // Both must outlive the object.
  TrainTask(const v1::TrainerTask& task, AgentLink& link);

  // Everything before the first step. Collective.
  absl::Status Prepare();
  // All steps that are left, then the output. Collective.
  absl::Status Train();

 private:
  absl::Status ReadJob();
  // Every rank must read the same model and the same data, and start from the
  // same values.
  absl::Status CheckInputs();
  absl::Status CheckStart();
  absl::Status LoadEverything();
  absl::Status StartFresh();
  absl::Status Resume();
  absl::Status CheckResumed(const CheckpointState& resumed);
  void MakeLoop();
  void ReportStart();

  Wishes WishesNow();
  // Counts the step, then evaluates, logs and saves what is due.
  absl::Status AfterStep(const StepReport& report, double epoch_before,
                         absl::Duration duration);
  absl::Status Evaluate(EvalRecord* record);
  absl::StatusOr<LossSum> EvaluateFirstBatch();
  absl::Status LogStep(const StepReport& report, double epoch,
                       absl::Duration duration,
                       const std::optional<EvalRecord>& eval);
  // Stages a checkpoint; with an output directory it is the final one.
  absl::Status Save(const std::string& output_directory);
  // Rank 0's part of it.
  absl::Status Stage(v1::StagedFiles& staged);
  absl::Status WriteOutput(const std::string& directory);
  // The measured peak beside the plan.
  void ReportMemory();
  // A final evaluation that is worse than the start.
  absl::Status ReportWorse();
  absl::Status Finish();
  void SendResult(bool stopped);
  // Tells the agent that a micro-batch of phase_, or saving, begins now.
  void BeginMicroBatch();
  void BeginSaving();

  bool IsLead() const { return communicator_->rank() == 0; }
  GangModel gang_model();
  ConstStateBuffers buffers();

  const v1::TrainerTask& task_;
  AgentLink& link_;
  JobSpec spec_;
  ModelDescription model_;
  std::optional<Adapter> init_adapter_;
  MemoryPlan plan_;
  // Of the steps and what they wait for.
  PhaseClock clock_;
  ModelOptions options_;
  std::unique_ptr<Communicator> communicator_;
  LoadedData data_;
  std::unique_ptr<LoadedModel> loaded_;
  std::unique_ptr<AdamW> optimizer_;
  std::optional<BatchSampler> sampler_;
  std::unique_ptr<TrainLoop> loop_;
  // On rank 0, computed beside the first steps.
  std::future<absl::StatusOr<std::string>> base_sha256_;

  MetricsFile metrics_;
  CheckpointState state_;
  std::optional<PeriodTrigger> eval_due_, log_due_, save_due_;
  // What the micro-batches belong to.
  v1::TrainerProgress::Phase phase_ = v1::TrainerProgress::PHASE_STEP;
  // Of the newest evaluation, and its step.
  EvalRecord eval_;
  int64_t eval_step_ = -1;
  GatherCounts counted_;
  // Since the last point.
  struct {
    int64_t steps = 0, trained = 0, total = 0;
  } unlogged_;
  DivergenceWatch divergence_;
  // Of collectives, but while one rank works for all.
  absl::Duration timeout_ = absl::Minutes(30);
};

}  // namespace qlora::trainer
