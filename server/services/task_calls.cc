// The calls of JobService that run a task on a worker.
#include <cmath>
#include <deque>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/base/format.h"
#include "common/base/mutex.h"
#include "common/base/plural.h"
#include "common/base/status_macros.h"
#include "server/core/scheduler.h"
#include "server/services/job_service.h"
#include "server/services/pull_stream.h"

namespace qlora::server {
namespace {

// Loss that a repeated evaluation may differ by, relative to 1 or the loss.
constexpr double kVerifyTolerance = 1e-4;

// Connects a call and its task: whichever is cancelled first ends the other.
class TaskLink {
 public:
  explicit TaskLink(Tasks* tasks) : tasks_(tasks) {}

  void Started(const std::string& task_id) {
    bool cancelled;
    {
      MutexLock lock(&mu_);
      task_id_ = task_id;
      cancelled = cancelled_;
    }
    if (cancelled) tasks_->Cancel(task_id);
  }
  void Cancel() {
    std::string id;
    {
      MutexLock lock(&mu_);
      cancelled_ = true;
      id = task_id_;
    }
    if (!id.empty()) tasks_->Cancel(id);
  }

 private:
  Tasks* const tasks_;
  Mutex mu_;
  std::string task_id_ ABSL_GUARDED_BY(mu_);
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

// A unary call that waits for a task's one answer. Owns itself.
class TaskCall : public grpc::ServerUnaryReactor {
 public:
  // make: the task, on the pool. answer: takes in one event; end: what the call
  // returns once the task has ended well.
  TaskCall(const ServiceContext& services,
           std::function<absl::StatusOr<qlora::v1::RunTask>()> make,
           std::function<void(const qlora::v1::TrainerEvent&)> answer,
           std::function<absl::Status()> end)
      : services_(services), link_(std::make_shared<TaskLink>(services.tasks)) {
    services_.pool->Run([this, make, answer, end] {
      auto task = make();
      if (!task.ok()) return Finish(ToGrpc(task.status()));
      // Ended and gone at any time from here on.
      const auto link = link_;
      const auto id = services_.tasks->Start(
          *std::move(task),
          {.on_event = answer, .on_done = [this, end](const absl::Status& s) {
             Finish(ToGrpc(s.ok() ? end() : s));
           }});
      if (!id.ok()) return Finish(ToGrpc(id.status()));
      link->Started(*id);
    });
  }
  void OnCancel() override {
    services_.pool->Run([link = link_] { link->Cancel(); });
  }
  void OnDone() override { delete this; }

 private:
  const ServiceContext services_;
  const std::shared_ptr<TaskLink> link_;
};

// A finished job and what it left, to load again.
absl::StatusOr<Job> FinishedJob(const ServiceContext& services,
                                const std::string& reference,
                                const std::string& project) {
  ASSIGN_OR_RETURN(
      Job job, services.coordinator->FindJob(reference, ProjectOf(project)));
  if (job.job().state() != qlora::v1::JOB_STATE_SUCCEEDED) {
    return absl::FailedPreconditionError(
        absl::StrCat(job.job().job_id(), " is ", ShortName(job.job().state()),
                     ": only a job that SUCCEEDED has an output"));
  }
  return job;
}

void UseOutput(const Job& job, qlora::v1::RunTask& task) {
  if (job.plan->spec.method == Method::kFull) {
    task.mutable_model()->set_name(job.job().name());
    *task.mutable_model()->mutable_files() = job.job().output();
  } else {
    *task.mutable_model() = job.record.model();
    *task.mutable_adapter_files() = job.job().output();
  }
}

absl::StatusOr<qlora::v1::RunTask> MakeGenerate(
    const ServiceContext& services, const qlora::v1::GenerateRequest& request) {
  if (request.job().empty() == request.model().empty()) {
    return absl::InvalidArgumentError("name either a job or a model");
  }
  if (request.prompt().empty() && request.messages().empty() &&
      request.prompts().empty()) {
    return FieldError("prompt", "there is nothing to go on from");
  }
  RETURN_IF_ERROR(CheckNotNegative("max_new_tokens", request.max_new_tokens()));
  // Also if it is not a number.
  if (!(request.temperature() >= 0) || std::isinf(request.temperature())) {
    return FieldError("temperature", "must be 0 or more, and finite");
  }
  if (!(request.top_p() >= 0 && request.top_p() <= 1)) {
    return FieldError("top_p", "must be between 0 and 1");
  }
  qlora::v1::RunTask task;
  auto& trainer = *task.mutable_task();
  trainer.set_mode(qlora::v1::TRAINER_MODE_GENERATE);
  trainer.set_world_size(1);
  *trainer.mutable_generate() = request;
  if (request.job().empty()) {
    ASSIGN_OR_RETURN(const ResolvedModel model,
                     services.admission->ResolveModel(
                         request.model(), /*weights=*/true, "model"));
    *task.mutable_model() = model.source;
    return task;
  }
  ASSIGN_OR_RETURN(const Job job,
                   FinishedJob(services, request.job(), request.project()));
  trainer.set_job_file(job.job().resolved_job_file());
  for (const auto& input : job.record.inputs()) {
    if (input.path() == job.plan->spec.data.chat_template) {
      *task.add_inputs() = input;
    }
  }
  if (request.without_adapter()) {
    *task.mutable_model() = job.record.model();
  } else {
    UseOutput(job, task);
  }
  return task;
}

absl::StatusOr<qlora::v1::RunTask> MakePlanTask(
    const ServiceContext& services, const qlora::v1::PlanJobRequest& request) {
  ASSIGN_OR_RETURN(const Job job, services.admission->Admit(request.job_file(),
                                                            request.inputs()));
  qlora::v1::RunTask task;
  auto& trainer = *task.mutable_task();
  trainer.set_mode(qlora::v1::TRAINER_MODE_PLAN);
  trainer.set_world_size(job.plan->spec.world_size());
  trainer.set_job_file(job.job().resolved_job_file());
  *task.mutable_model() = job.record.model();
  *task.mutable_inputs() = job.record.inputs();
  return task;
}

absl::StatusOr<qlora::v1::RunTask> MakeVerify(
    const ServiceContext& services,
    const qlora::v1::VerifyAdapterRequest& request) {
  ASSIGN_OR_RETURN(const Job job,
                   FinishedJob(services, request.job(), request.project()));
  qlora::v1::RunTask task;
  auto& trainer = *task.mutable_task();
  trainer.set_mode(qlora::v1::TRAINER_MODE_EVAL);
  trainer.set_world_size(1);
  trainer.set_job_id(job.job().job_id());
  *trainer.mutable_job_create_time() = job.job().create_time();
  trainer.set_job_file(job.job().resolved_job_file());
  *task.mutable_inputs() = job.record.inputs();
  UseOutput(job, task);
  return task;
}

absl::Status FinishPlan(const ServiceContext& services,
                        qlora::v1::PlanJobResponse* response) {
  const ParsedJob parsed = ParseJobFile(response->resolved_job_file());
  services.coordinator->Read([&](const State& state) {
    for (const std::string& node :
         NodesThatHold(state, parsed.spec, response->memory_bytes_per_rank())) {
      response->add_fits_on(node);
    }
  });
  if (response->fits_on_size() < parsed.spec.resources.nodes) {
    response->set_does_not_fit(absl::StrCat(
        "needs ", Plural(parsed.spec.resources.nodes, "node"), " with ",
        Plural(parsed.spec.resources.devices_per_node, "device"), " of ",
        FormatBytes(response->memory_bytes_per_rank()), " each; ",
        response->fits_on_size(), " of the registered nodes have that"));
  }
  return absl::OkStatus();
}

void Compare(qlora::v1::VerifyAdapterResponse* response) {
  const double difference =
      std::abs(response->measured_loss() - response->recorded_loss());
  response->set_passed(difference <=
                       kVerifyTolerance *
                           std::max(1.0, std::abs(response->recorded_loss())));
  response->set_message(absl::StrCat(
      "loss ", response->measured_loss(), ", recorded ",
      response->recorded_loss(),
      response->base_loss() == 0
          ? ""
          : absl::StrCat(", of the base alone ", response->base_loss()),
      response->passed() ? "" : ": it does not give what was recorded"));
}

}  // namespace

grpc::ServerUnaryReactor* JobService::PlanJob(
    Context*, const qlora::v1::PlanJobRequest* request,
    qlora::v1::PlanJobResponse* response) {
  auto resolved = std::make_shared<std::string>();
  return new TaskCall(
      services_,
      [=, this]() -> absl::StatusOr<qlora::v1::RunTask> {
        auto task = MakePlanTask(services_, *request);
        if (task.ok()) *resolved = task->task().job_file();
        return task;
      },
      [=](const qlora::v1::TrainerEvent& event) {
        if (event.has_plan()) *response = event.plan();
      },
      [=, this] {
        response->set_resolved_job_file(*resolved);
        return FinishPlan(services_, response);
      });
}

grpc::ServerUnaryReactor* JobService::VerifyAdapter(
    Context*, const qlora::v1::VerifyAdapterRequest* request,
    qlora::v1::VerifyAdapterResponse* response) {
  auto answered = std::make_shared<bool>(false);
  return new TaskCall(
      services_, [=, this] { return MakeVerify(services_, *request); },
      [=](const qlora::v1::TrainerEvent& event) {
        if (!event.has_eval()) return;
        *answered = true;
        response->set_measured_loss(event.eval().loss());
        response->set_recorded_loss(event.eval().recorded_loss());
        response->set_base_loss(event.eval().base_loss());
        Compare(response);
      },
      [=] {
        return *answered ? absl::OkStatus()
                         : absl::InternalError(
                               "the worker ended without an evaluation");
      });
}

grpc::ServerWriteReactor<qlora::v1::GenerateResponse>* JobService::Generate(
    Context*, const qlora::v1::GenerateRequest* request) {
  // Filled by the task, emptied by the stream.
  struct Queue {
    Mutex mu;
    std::deque<qlora::v1::GenerateResponse> pieces ABSL_GUARDED_BY(mu);
    bool done ABSL_GUARDED_BY(mu) = false;
    absl::Status status ABSL_GUARDED_BY(mu);
  };
  auto queue = std::make_shared<Queue>();
  auto link = std::make_shared<TaskLink>(services_.tasks);
  auto* stream = new PullStream<qlora::v1::GenerateResponse>(
      services_.pool, services_.notifier, "",
      [queue](qlora::v1::GenerateResponse* response) -> absl::StatusOr<Pull> {
        MutexLock lock(&queue->mu);
        if (!queue->pieces.empty()) {
          *response = std::move(queue->pieces.front());
          queue->pieces.pop_front();
          return Pull::kItem;
        }
        if (!queue->done) return Pull::kWait;
        RETURN_IF_ERROR(queue->status);
        return Pull::kEnd;
      });
  stream->OnEnd(
      [pool = services_.pool, link] { pool->Run([link] { link->Cancel(); }); });
  const auto wake = stream->MakeWake();
  const auto finish = [queue, wake](const absl::Status& status) {
    {
      MutexLock lock(&queue->mu);
      queue->done = true;
      queue->status = status;
    }
    wake();
  };
  services_.pool->Run(
      [services = services_, request = *request, queue, link, wake, finish] {
        auto task = MakeGenerate(services, request);
        if (!task.ok()) return finish(task.status());
        const auto id = services.tasks->Start(
            *std::move(task),
            {.on_event =
                 [queue, wake](const qlora::v1::TrainerEvent& event) {
                   if (!event.has_generated()) return;
                   {
                     MutexLock lock(&queue->mu);
                     queue->pieces.push_back(event.generated());
                   }
                   wake();
                 },
             .on_done = finish});
        if (!id.ok()) return finish(id.status());
        link->Started(*id);
      });
  return stream;
}

}  // namespace qlora::server
