// Mode PLAN: what a job would train and need, without training.
#include <algorithm>
#include <array>

#include "common/base/status_macros.h"
#include "worker/trainer/data/sampler.h"
#include "worker/trainer/job_setup.h"
#include "worker/trainer/model/parameters.h"
#include "worker/trainer/tasks.h"

namespace qlora::trainer {
namespace {

void FillMemory(const MemoryPlan& plan, v1::PlanJobResponse* response) {
  for (const MemoryItem& item : plan.items) {
    v1::MemoryPlanItem& out = *response->add_memory();
    out.set_what(item.what);
    out.set_bytes(item.bytes);
  }
  response->set_memory_bytes_per_rank(plan.total());
  constexpr std::array kNames = {"keep", "recompute-mlp", "recompute"};
  for (const LayerMemory layer : plan.layers) {
    response->add_activation_plan(kNames[static_cast<size_t>(layer)]);
  }
  response->set_compute_dtype(
      std::string(ComputeDtypeName(plan.compute_dtype)));
}

void FillData(const JobSpec& spec, const LoadedData& data,
              v1::PlanJobResponse* response) {
  const DatasetStats& stats = data.train.stats();
  const BatchSampler sampler(data.train.size(), spec.train.global_batch_size,
                             spec.train.seed, spec.data.shuffle);
  SetDataCounts(data, response);
  response->set_total_steps(
      sampler.TotalSteps(spec.train.epochs, spec.train.max_steps));
  response->set_tokens_trained_per_epoch(stats.trained_tokens);
  response->set_tokens_total_per_epoch(stats.total_tokens);
}

}  // namespace

absl::Status RunPlan(const v1::TrainerTask& task, AgentLink& link) {
  ASSIGN_OR_RETURN(JobSpec spec, ReadJobSpec(task));
  ASSIGN_OR_RETURN(const ModelDescription model,
                   ReadModelDescription(task.model_directory()));
  RETURN_IF_ERROR(OpenInitAdapter(task, model, spec).status());
  v1::TrainerEvent event;
  v1::PlanJobResponse& response = *event.mutable_plan();
  response.set_resolved_job_file(ResolvedJobFile(spec));
  response.set_total_parameters(ParameterCount(model));
  v1::TrainerTask gang = task;
  gang.set_world_size(spec.world_size());
  ASSIGN_OR_RETURN(const LoadedData data, LoadJobData(task, spec, model));
  const auto plan_gang = [&] {
    return PlanMemory(PlanInput(gang, spec, model, data));
  };
  absl::StatusOr<MemoryPlan> plan = plan_gang();
  if (absl::IsResourceExhausted(plan.status())) {
    response.set_does_not_fit(std::string(plan.status().message()));
    gang.set_memory_bytes(0);
    plan = plan_gang();
  }
  RETURN_IF_ERROR(plan.status());
  FillMemory(*plan, &response);
  ASSIGN_OR_RETURN(const ModelOptions options, MakeModelOptions(spec, model));
  response.set_trainable_parameters(
      MakeParameters(model, options.method, options.lora).layout.total);
  FillData(spec, data, &response);
  for (const std::string& warning : JobWarnings(spec, model, data)) {
    response.add_warnings(warning);
  }
  link.Send(event);
  v1::TrainerEvent done;
  done.mutable_result();
  link.Send(done);
  return absl::OkStatus();
}

}  // namespace qlora::trainer
