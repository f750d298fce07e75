#include "worker/agent/task.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace qlora::agent {

Task::Task(Environment& environment, v1::RunTask command, int64_t term,
           std::function<void()> on_change)
    : environment_(environment),
      command_(std::move(command)),
      term_(term),
      on_change_(std::move(on_change)),
      directory_(
          absl::StrCat(environment.directory, "/tasks/", command_.task_id())) {}

Task::~Task() {
  process_.reset();
  transfers_.reset();
  const absl::Status removed = RemoveRecursively(directory_);
  if (!removed.ok()) {
    LogWarning("task directory stays behind",
               {{"task", id()}, {"error", removed}});
  }
}

void Task::Run() {
  transfers_ = std::make_unique<TransferQueue>(
      [weak = weak_from_this(), &loop = environment_.loop] {
        loop.Post([weak] {
          if (const auto self = weak.lock()) self->on_change_();
        });
      });
  // Generation reads none of its job's data.
  const bool generate = command_.task().mode() == v1::TRAINER_MODE_GENERATE;
  InputRequest request{.model = command_.model(),
                       .inputs = command_.inputs(),
                       .job_file = generate ? "" : command_.task().job_file(),
                       .resume_files = {},
                       .adapter_files = command_.adapter_files()};
  transfers_->Add([weak = weak_from_this(), &environment = environment_,
                   directory = directory_,
                   request = std::move(request)](Cancellation& cancellation) {
    const auto fetch = [&]() -> absl::StatusOr<LocalInputs> {
      RETURN_IF_ERROR(CreateDirectories(directory + "/work"));
      return environment.fetcher.Fetch(request, directory, cancellation);
    };
    auto inputs = fetch();
    environment.loop.Post([weak, inputs = std::move(inputs)] {
      if (const auto self = weak.lock()) self->OnFetched(inputs);
    });
  });
}

void Task::OnFetched(absl::StatusOr<LocalInputs> inputs) {
  if (ended_) return;
  if (!inputs.ok()) {
    return Finish(std::string(inputs.status().message()),
                  ClassOfStatus(inputs.status()));
  }
  inputs_ = *std::move(inputs);
  Spawn();
}

void Task::Spawn() {
  // A plan is for ranks that have one device each; what else runs has the node:
  // an evaluation does alone what a gang did on all of them.
  const bool plan = command_.task().mode() == v1::TRAINER_MODE_PLAN;
  int64_t memory = 0;
  int cores = 0;
  for (const v1::Device& device : environment_.devices) {
    memory = plan ? std::max(memory, device.memory_bytes())
                  : memory + device.memory_bytes();
    cores = plan ? std::max(cores, device.cores_size())
                 : cores + device.cores_size();
  }
  RankOptions options{.rank = 0,
                      .trainer = environment_.trainer,
                      .directory = directory_ + "/work",
                      .group = absl::StrCat("task-", id()),
                      .cores = {},
                      .threads = std::max(1, cores),
                      .listener = UniqueFd()};
  const int threads = options.threads;
  process_ = std::make_unique<RankProcess>(
      environment_.loop, environment_.processes, std::move(options),
      RankProcess::Handlers{
          .on_started = [] {},
          .on_event =
              [this](v1::TrainerEvent event) { OnEvent(std::move(event)); },
          .on_line = [this](std::string line) { last_line_ = std::move(line); },
          .on_end = [this] { OnProcessEnd(); }});
  v1::TrainerCommand command;
  v1::TrainerTask& task = *command.mutable_task();
  task = command_.task();
  if (!inputs_.model_directory.empty()) {
    task.set_model_directory(inputs_.model_directory);
  }
  task.clear_inputs();
  for (const v1::LocalInput& input : inputs_.inputs) *task.add_inputs() = input;
  task.set_adapter_directory(inputs_.adapter_directory);
  task.set_work_directory(directory_ + "/work");
  // What depends on the present makes tokens that are of use once.
  if (task.has_job_create_time()) {
    task.set_token_cache_directory(environment_.token_cache);
  }
  task.set_rank(0);
  task.set_world_size(std::max(1, task.world_size()));
  task.set_threads(threads);
  task.set_data_plane_host(environment_.data_plane_host);
  if (task.device().empty() && !environment_.devices.empty()) {
    task.set_device(environment_.devices.front().name());
  }
  if (task.memory_bytes() == 0) task.set_memory_bytes(memory);
  process_->Send(command);
}

void Task::OnEvent(v1::TrainerEvent event) {
  switch (event.event_case()) {
    case v1::TrainerEvent::kGenerated:
    case v1::TrainerEvent::kPlan:
    case v1::TrainerEvent::kEval: {
      v1::TaskOutput output;
      *output.mutable_event() = std::move(event);
      return Emit(std::move(output));
    }
    default:
      return;
  }
}

void Task::OnProcessEnd() {
  const RankEnd& end = process_->end();
  if (cancelled_) return Finish("cancelled", v1::FAILURE_CLASS_UNSPECIFIED);
  if (end.exit_code == 0 && end.signal == 0 && !end.failure.has_value()) {
    return Finish("", v1::FAILURE_CLASS_UNSPECIFIED);
  }
  const v1::AttemptEnded outcome = DecideOutcome({end}, std::nullopt);
  std::string error = outcome.message();
  if (!end.failure.has_value() && !last_line_.empty()) {
    absl::StrAppend(&error, ": ", last_line_);
  }
  Finish(error, outcome.failure_class());
}

void Task::Cancel() {
  if (ended_) return;
  cancelled_ = true;
  if (process_ != nullptr) {
    process_->Kill();
  } else {
    Finish("cancelled", v1::FAILURE_CLASS_UNSPECIFIED);
  }
}

void Task::Finish(const std::string& error, v1::FailureClass failure_class) {
  ended_ = true;
  transfers_->Cancel();
  v1::TaskOutput output;
  output.set_done(true);
  output.set_error(error);
  output.set_failure_class(failure_class);
  Emit(std::move(output));
  on_change_();
}

void Task::Emit(v1::TaskOutput output) {
  output.set_task_id(id());
  v1::WorkerEvent event;
  event.set_term(term_);
  *event.mutable_task_output() = std::move(output);
  environment_.emit(std::move(event));
}

}  // namespace qlora::agent
