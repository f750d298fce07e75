// What a task names, read and checked: job file, model description, memory
// plan, data, adapter. Nothing here computes.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/spec/job_spec.h"
#include "common/spec/memory_plan.h"
#include "common/spec/model_description.h"
#include "qlora/v1/trainer.pb.h"
#include "worker/text/text.h"
#include "worker/trainer/checkpoint/adapter.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/model/model.h"
#include "worker/trainer/parallel/communicator.h"

namespace qlora::trainer {

// InvalidArgument listing everything that is wrong with the task's job file.
absl::StatusOr<JobSpec> ReadJobSpec(const v1::TrainerTask& task);

// Where a file lies that the job file names. NotFound if it was not delivered.
absl::StatusOr<std::string> InputPath(const v1::TrainerTask& task,
                                      const std::string& name);

// lora.init_adapter, by which spec.lora is completed (AdoptAdapter); nothing if
// the job names none. Before a plan is made.
absl::StatusOr<std::optional<Adapter>> OpenInitAdapter(
    const v1::TrainerTask& task, const ModelDescription& model, JobSpec& spec);

// What this rank alone plans with: the memory and threads that the task may
// use; in mode EVAL for forwards only. spec and model must outlive the result.
MemoryPlanInput PlanInput(const v1::TrainerTask& task, const JobSpec& spec,
                          const ModelDescription& model,
                          const LoadedData& data);

// The options of the job's model, but for what a plan decides.
absl::StatusOr<ModelOptions> MakeModelOptions(const JobSpec& spec,
                                              const ModelDescription& model);

// Fills in what the plan decides.
void ApplyPlan(const MemoryPlan& plan, const JobSpec& spec,
               ModelOptions& options);

// The tokenizer of the model directory and the job's chat template.
absl::StatusOr<text::ModelText> LoadJobText(const v1::TrainerTask& task,
                                            const JobSpec& spec);

// The job's rows. The tokenizer comes from the model directory; data of format
// tokens needs none.
absl::StatusOr<LoadedData> LoadJobData(const v1::TrainerTask& task,
                                       const JobSpec& spec,
                                       const ModelDescription& model);

// The same on every rank, the first of a node doing the work: rank 0 fills the
// cache before the others look. Collective; all ranks fail together. From here
// on, until the communicator gets another timeout, ranks wait for each other
// however long it takes: tokenizing and loading have no bound of their own, the
// agent watches over rank 0.
absl::StatusOr<LoadedData> LoadJobDataTogether(const v1::TrainerTask& task,
                                               const JobSpec& spec,
                                               const ModelDescription& model,
                                               Communicator& communicator);

// What was read, in v1::DataCounts or v1::PlanJobResponse.
template <typename Counts>
void SetDataCounts(const LoadedData& data, Counts* out) {
  const DatasetStats stats = data.records();
  out->set_records(stats.records);
  out->set_bad_records(stats.bad);
  out->set_truncated_records(stats.truncated);
  out->set_split_records(stats.split);
  out->set_dropped_records(stats.dropped);
  out->set_rows(data.train.size());
  out->set_eval_rows(data.eval.size());
}

// What the user should know though the job can run: sentences with numbers and
// remedy.
std::vector<std::string> JobWarnings(const JobSpec& spec,
                                     const ModelDescription& model,
                                     const LoadedData& data);

// Of the tokenized rows, in order.
std::string DatasetSha256(const Dataset& data);

// Over names and contents of the model's config.json and weight files (without
// these for fresh weights).
absl::StatusOr<std::string> BaseSha256(const std::string& directory,
                                       bool with_weights);

// The same, but of weight files only the sizes, headers and some samples: fast,
// to tell different models apart before a gang starts.
absl::StatusOr<std::string> BaseSketch(const std::string& directory,
                                       bool with_weights);

// Size of what BaseSha256 reads, bytes; files that cannot be read count as 0.
int64_t WeightBytes(const std::string& directory);

// "float32" or "bfloat16".
std::string_view ComputeDtypeName(ComputeDtype dtype);

}  // namespace qlora::trainer
