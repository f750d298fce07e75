// Mode EVAL: loads a finished job's output again and measures what its
// eval.json recorded.
#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "worker/trainer/checkpoint/job_output.h"
#include "worker/trainer/data/sampler.h"
#include "worker/trainer/evaluate.h"
#include "worker/trainer/failure.h"
#include "worker/trainer/gang_plan.h"
#include "worker/trainer/job_setup.h"
#include "worker/trainer/loaded_model.h"
#include "worker/trainer/parallel/agreement.h"
#include "worker/trainer/tasks.h"

namespace qlora::trainer {
namespace {

struct EvalJob {
  JobSpec spec;
  ModelDescription model;
  ModelOptions options;
  // Of methods other than full.
  std::optional<Adapter> adapter;
  EvalRecord recorded;
  // Where the weights are: the base, or the trained model of method full.
  std::string weights_directory;
};

absl::StatusOr<EvalJob> ReadEvalJob(const v1::TrainerTask& task) {
  EvalJob job;
  ASSIGN_OR_RETURN(job.spec, ReadJobSpec(task));
  const bool full = job.spec.method == Method::kFull;
  const std::string& output =
      full ? task.model_directory() : task.adapter_directory();
  RETURN_IF_ERROR(VerifyChecksums(output));
  ASSIGN_OR_RETURN(job.recorded, ReadEvalRecord(output));
  job.spec.model.random_init = false;
  job.spec.lora.dropout = 0;
  // Whatever this processor would choose.
  job.spec.train.compute_dtype = job.recorded.compute_dtype == "bfloat16"
                                     ? ComputeDtype::kBfloat16
                                     : ComputeDtype::kFloat32;
  job.weights_directory = task.model_directory();
  ASSIGN_OR_RETURN(job.model, ReadModelDescription(job.weights_directory));
  if (!full) {
    ASSIGN_OR_RETURN(job.adapter, OpenAdapter(output));
    RETURN_IF_ERROR(AdoptAdapter(*job.adapter, job.model, job.spec.lora));
  }
  ASSIGN_OR_RETURN(job.options, MakeModelOptions(job.spec, job.model));
  return job;
}

// The rows that eval.json names.
std::vector<int64_t> RecordedRows(const EvalJob& job, const LoadedData& data) {
  if (job.recorded.data == "eval") return AllRows(data.eval);
  BatchSampler sampler(data.train.size(), job.spec.train.global_batch_size,
                       job.spec.train.seed, job.spec.data.shuffle);
  DataCursor first;
  return sampler.NextBatch(&first);
}

absl::Status CheckTokens(const LossSum& sum, const EvalRecord& recorded) {
  if (sum.tokens == recorded.tokens && sum.tokens > 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the evaluation data has ", sum.tokens, " trained tokens now, but ",
      recorded.tokens, " when the job ended: data or tokenizer changed"));
}

}  // namespace

absl::Status RunEval(const v1::TrainerTask& task, AgentLink& link) {
  ASSIGN_OR_RETURN(EvalJob job, ReadEvalJob(task));
  ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> communicator,
                   JoinGang(task, link));
  ASSIGN_OR_RETURN(
      const LoadedData data,
      LoadJobDataTogether(task, job.spec, job.model, *communicator));
  ASSIGN_OR_RETURN(
      const MemoryPlan plan,
      PlanTogether(PlanInput(task, job.spec, job.model, data), *communicator));
  ApplyPlan(plan, job.spec, job.options);
  absl::StatusOr<std::unique_ptr<LoadedModel>> loaded = LoadedModel::Load(
      job.weights_directory, job.spec, job.model, job.options, *communicator);
  RETURN_IF_ERROR(AgreeOn(*communicator, loaded.status()));
  if (job.adapter) {
    RETURN_IF_ERROR(
        ReadAdapter(*job.adapter, (*loaded)->layout(), (*loaded)->params()));
  }
  const GangModel gang{.communicator = *communicator,
                       .model = (*loaded)->model(),
                       .weights = (*loaded)->weights(),
                       .micro_batch_size = plan.micro_batch_size};
  const Dataset& rows_of = job.recorded.data == "eval" ? data.eval : data.train;
  const std::vector<int64_t> rows = RecordedRows(job, data);
  ASSIGN_OR_RETURN(const LossSum sum,
                   EvaluateRows(gang, (*loaded)->params(), rows_of, rows));
  RETURN_IF_ERROR(CheckTokens(sum, job.recorded));
  const auto tokens = static_cast<double>(sum.tokens);
  v1::TrainerEvent event;
  v1::EvalResult& result = *event.mutable_eval();
  result.set_loss(sum.loss / tokens);
  result.set_tokens(sum.tokens);
  result.set_recorded_loss(job.recorded.loss);
  if (job.adapter) {
    // Without its B matrices an adapter adds nothing.
    std::ranges::fill((*loaded)->params(), 0.0f);
    ASSIGN_OR_RETURN(const LossSum base,
                     EvaluateRows(gang, (*loaded)->params(), rows_of, rows));
    result.set_base_loss(base.loss / tokens);
  }
  link.Send(event);
  v1::TrainerEvent done;
  done.mutable_result();
  link.Send(done);
  return absl::OkStatus();
}

}  // namespace qlora::trainer
