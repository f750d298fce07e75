#include "worker/agent/attempt.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/base/clock.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/base/utf8.h"
#include "worker/agent/network.h"
#include "worker/agent/proc_stat.h"
#include "worker/agent/text.h"

namespace qlora::agent {
namespace {

constexpr absl::Duration kWatchInterval = absl::Seconds(1);
// For ranks that nobody knows to save.
constexpr absl::Duration kHeldGrace = absl::Minutes(5);
// Of ranks that warn without end, so many become events of the job.
constexpr int kMaxWarnings = 100;
constexpr size_t kMaxLogText = 16 << 10;
// Of a rank that prints too much and ends, so many last lines are told.
constexpr size_t kLastLines = 20;
// Of a held attempt's rank other than 0: rank 0 may not get to stage the newest
// checkpoint, but then has the one before it.
constexpr int kKeptShares = 2;

bool HasRank0(const v1::PrepareAttempt& command) {
  return std::ranges::any_of(command.ranks(),
                             [](const auto& r) { return r.rank() == 0; });
}

}  // namespace

Attempt::Attempt(Environment& environment, v1::PrepareAttempt command,
                 int64_t term, std::function<void()> on_change)
    : environment_(environment),
      command_(std::move(command)),
      term_(term),
      on_change_(std::move(on_change)),
      name_(AttemptName(command_.job_id(), command_.attempt())),
      directory_(AttemptDirectory(environment.directory, name_)),
      has_rank_0_(HasRank0(command_)),
      // Without rank 0, which saves for all, a node cannot tell a gang that
      // hangs from one that saves.
      progress_(environment.timeouts.first_step,
                has_rank_0_ ? environment.timeouts.step
                            : environment.timeouts.first_step),
      watched_at_(SteadyNow()) {}

Attempt::~Attempt() {
  environment_.loop.CancelTimer(kill_timer_);
  environment_.loop.CancelTimer(watch_timer_);
  environment_.loop.CancelTimer(start_timer_);
  environment_.loop.CancelTimer(hold_timer_);
  ranks_.clear();
  // Nothing writes there any more.
  transfers_.reset();
  if (!ended()) {
    if (!HasLeft()) {
      LogWarning("attempt ends with the worker", {{"attempt", name_}});
    }
    for (const v1::StagedFiles& staged : uploads_) {
      LogInfo("checkpoint is kept for the next start",
              {{"attempt", name_}, {"step", staged.step()}});
    }
    return;
  }
  const absl::Status removed = RemoveRecursively(directory_);
  if (!removed.ok()) {
    LogWarning("attempt directory stays behind",
               {{"attempt", name_}, {"error", removed}});
  }
}

void Attempt::StartTransfers() {
  transfers_ = std::make_unique<TransferQueue>(
      [weak = weak_from_this(), &loop = environment_.loop] {
        loop.Post([weak] {
          if (const auto self = weak.lock()) self->on_change_();
        });
      });
}

void Attempt::TakeOver(const AttemptRecord& record) {
  StartTransfers();
  phase_ = Phase::kLeft;
  uploads_.assign(record.staged().begin(), record.staged().end());
  shares_.assign(record.shares().begin(), record.shares().end());
  if (!uploads_.empty()) last_step_ = uploads_.back().step();
  former_end_ =
      record.has_ended()
          ? record.ended()
          : DecideOutcome(
                {}, AgentCause{
                        .failure_class = v1::FAILURE_CLASS_INFRA,
                        .message =
                            "the worker ended before its ranks had saved, and "
                            "they ended with it"});
  LogInfo("attempt of the last run waits for the coordinator",
          {{"attempt", name_}, {"checkpoints", uploads_.size()}});
}

void Attempt::GoOn() {
  environment_.loop.CancelTimer(hold_timer_);
  held_ = false;
  if (left()) phase_ = Phase::kRunning;
  // The record has them until it is written again: said twice, they count once.
  for (v1::RankStaged& share : std::exchange(shares_, {})) {
    EmitStaged(std::move(share));
  }
  UploadNext();
  MaybeEnd();
}

void Attempt::Hold() {
  if (held_ || ended()) return;
  held_ = true;
  if (resting()) return KeepHeld();
  const absl::Duration patience = environment_.timeouts.alone;
  LogWarning(
      "the coordinator's database does not know this attempt; its ranks go on, "
      "and nothing of it is handed in",
      {{"attempt", name_}, {"for", absl::FormatDuration(patience)}});
  hold_timer_ = environment_.loop.RunAfter(patience, [this] { KeepHeld(); });
}

void Attempt::KeepHeld() {
  environment_.loop.CancelTimer(hold_timer_);
  const AgentCause cause{
      .failure_class = v1::FAILURE_CLASS_INFRA,
      .message = "for too long, no coordinator came that knows it"};
  absl::Duration wait = 2 * kHeldGrace;
  if (resting()) {
    wait =
        environment_.timeouts.kept - RecordAge(environment_.directory, name_);
    if (wait <= absl::ZeroDuration()) {
      return Stop(/*save=*/false, absl::ZeroDuration(), cause);
    }
    LogWarning(
        "the coordinator's database does not know this attempt; what its ranks "
        "left is kept for one that does",
        {{"attempt", name_},
         {"for", absl::FormatDuration(absl::Ceil(wait, absl::Seconds(1)))}});
  } else {
    Stop(/*save=*/true, kHeldGrace, cause);
  }
  hold_timer_ = environment_.loop.RunAfter(wait, [this] { KeepHeld(); });
}

void Attempt::Remember() const {
  AttemptRecord record;
  record.set_job_id(command_.job_id());
  record.set_attempt(command_.attempt());
  record.set_term(term_);
  for (const v1::StagedFiles& staged : uploads_) *record.add_staged() = staged;
  for (const v1::RankStaged& share : shares_) *record.add_shares() = share;
  if (!ranks_.empty() && AllEnded()) *record.mutable_ended() = Outcome();
  const absl::Status stored = StoreRecord(environment_.directory, record);
  if (!stored.ok()) {
    LogWarning("attempt would not outlast the worker",
               {{"attempt", name_}, {"error", stored}});
  }
}

void Attempt::Prepare() {
  Remember();
  StartTransfers();
  Watch();
  InputRequest request{.model = command_.model(),
                       .inputs = command_.inputs(),
                       .job_file = command_.resolved_job_file(),
                       .resume_files = command_.resume_files(),
                       .adapter_files = {}};
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

void Attempt::OnFetched(absl::StatusOr<LocalInputs> inputs) {
  if (phase_ != Phase::kFetching) return;
  if (!inputs.ok() && !cause_.has_value()) {
    cause_ = AgentCause{
        .failure_class = ClassOfStatus(inputs.status()),
        .message = std::string(inputs.status().message()),
        .checkpoint_unusable = IsCheckpointUnusable(inputs.status())};
  }
  if (cause_.has_value()) {
    phase_ = Phase::kSpawning;
    return MaybeEnd();
  }
  inputs_ = *std::move(inputs);
  SpawnRanks();
}

void Attempt::SpawnRanks() {
  phase_ = Phase::kSpawning;
  for (const v1::RankAssignment& assignment : command_.ranks()) {
    UniqueFd listener;
    if (assignment.rank() == 0 && command_.world_size() > 1) {
      auto bound = ListenOn(environment_.data_plane_host);
      if (!bound.ok()) {
        cause_ = AgentCause{.failure_class = v1::FAILURE_CLASS_INFRA,
                            .message = std::string(bound.status().message())};
        break;
      }
      rendezvous_address_ = bound->address;
      listener = std::move(bound->socket);
    }
    SpawnRank(assignment, std::move(listener));
  }
  if (cause_.has_value()) KillRanks();
  MaybeEnd();
  on_change_();
}

void Attempt::SpawnRank(const v1::RankAssignment& assignment,
                        UniqueFd listener) {
  const int rank = assignment.rank();
  RankOptions options{.rank = rank,
                      .trainer = environment_.trainer,
                      .directory = WorkDirectory(),
                      .group = name_,
                      .cores = {},
                      .threads = 1,
                      .listener = std::move(listener)};
  if (const v1::Device* device = DeviceOf(assignment)) {
    options.cores.assign(device->cores().begin(), device->cores().end());
    options.threads = std::max(1, device->cores_size());
  }
  RankProcess::Handlers handlers{
      .on_started =
          [this, rank] {
            // A gang of one has nobody to wait for; its task is sent by Start.
            if (command_.world_size() == 1) OnRankReady(rank);
          },
      .on_event =
          [this, rank](v1::TrainerEvent event) {
            OnEvent(rank, std::move(event));
          },
      .on_line = [this, rank](const std::string& line) { OnLine(rank, line); },
      .on_end = [this, rank] { OnRankEnd(rank); }};
  ranks_.push_back(
      std::make_unique<RankProcess>(environment_.loop, environment_.processes,
                                    std::move(options), std::move(handlers)));
  if (command_.world_size() > 1) SendTask(*ranks_.back(), assignment);
}

void Attempt::SendTask(RankProcess& rank,
                       const v1::RankAssignment& assignment) {
  v1::TrainerCommand command;
  v1::TrainerTask& task = *command.mutable_task();
  task.set_mode(v1::TRAINER_MODE_TRAIN);
  task.set_job_id(command_.job_id());
  task.set_attempt(command_.attempt());
  task.set_job_file(command_.resolved_job_file());
  *task.mutable_job_create_time() = command_.job_create_time();
  task.set_model_directory(inputs_.model_directory);
  for (const v1::LocalInput& input : inputs_.inputs) *task.add_inputs() = input;
  task.set_work_directory(WorkDirectory());
  task.set_token_cache_directory(environment_.token_cache);
  task.set_rank(assignment.rank());
  task.set_world_size(command_.world_size());
  task.set_threads(1);
  task.set_device(assignment.device());
  task.set_data_plane_host(environment_.data_plane_host);
  task.set_resume_directory(inputs_.resume_directory);
  task.set_micro_batch_halvings(command_.micro_batch_halvings());
  if (const v1::Device* device = DeviceOf(assignment)) {
    task.set_threads(std::max(1, device->cores_size()));
    task.set_memory_bytes(device->memory_bytes());
  }
  rank.Send(command);
}

void Attempt::OnRankReady(int rank) {
  ready_.insert(rank);
  if (phase_ != Phase::kSpawning || cause_.has_value() ||
      ready_.size() != ranks_.size() ||
      ranks_.size() != static_cast<size_t>(command_.ranks_size())) {
    return;
  }
  phase_ = Phase::kReady;
  v1::WorkerEvent event;
  event.mutable_prepared()->set_rendezvous_address(rendezvous_address_);
  Emit(std::move(event));
  // A coordinator that gave this node up may never send Start or Stop.
  const absl::Duration patience = environment_.timeouts.start;
  start_timer_ = environment_.loop.RunAfter(patience, [this, patience] {
    if (phase_ != Phase::kReady) return;
    Stop(/*save=*/false, absl::ZeroDuration(),
         {.failure_class = v1::FAILURE_CLASS_INFRA,
          .message = absl::StrCat("not started within ",
                                  absl::FormatDuration(patience),
                                  " after it was prepared")});
  });
}

void Attempt::Start(const v1::StartAttempt& command) {
  if (phase_ != Phase::kReady) return;
  phase_ = Phase::kStarted;
  progress_.Word();
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (command_.world_size() == 1) {
      SendTask(*ranks_[i], command_.ranks(static_cast<int>(i)));
    } else {
      v1::TrainerCommand start;
      start.mutable_start()->set_rendezvous_address(
          command.rendezvous_address());
      ranks_[i]->Send(start);
    }
  }
}

void Attempt::OnEvent(int rank, v1::TrainerEvent trainer_event) {
  if (IsWatched(rank)) progress_.Word();
  v1::WorkerEvent event;
  switch (trainer_event.event_case()) {
    case v1::TrainerEvent::kReady:
      if (command_.world_size() > 1) OnRankReady(rank);
      return;
    case v1::TrainerEvent::kRunning:
      running_.insert(rank);
      if (trainer_event.running().has_data()) {
        *running_report_.mutable_data() = trainer_event.running().data();
      }
      if (phase_ != Phase::kStarted || running_.size() != ranks_.size()) return;
      phase_ = Phase::kRunning;
      *event.mutable_running() = running_report_;
      break;
    case v1::TrainerEvent::kMetrics:
      *event.mutable_metrics() = std::move(*trainer_event.mutable_metrics());
      event.mutable_metrics()->set_attempt(command_.attempt());
      last_step_ = event.metrics().step();
      environment_.metrics.Step(command_.job_id(), event.metrics());
      on_change_();
      break;
    case v1::TrainerEvent::kLog:
      if (trainer_event.log().level() == "warning" &&
          warnings_ < kMaxWarnings) {
        ++warnings_;
        EmitNotice("Warning",
                   Abridged(trainer_event.log().text(), kMaxLogText));
      }
      return OnLog(rank, std::move(*trainer_event.mutable_log()));
    case v1::TrainerEvent::kStaged:
      return OnStaged(rank, trainer_event.staged());
    case v1::TrainerEvent::kProgress:
      if (!IsWatched(rank)) return;
      return progress_.Begin(trainer_event.progress(), SteadyNow());
    default:
      // Result and failure are kept by the rank until its end.
      return;
  }
  Emit(std::move(event));
}

void Attempt::OnLine(int rank, const std::string& line) {
  const PrintedLine printed = ParsePrintedLine(line);
  v1::LogLine log;
  const int64_t now = absl::GetCurrentTimeNanos();
  log.mutable_time()->set_seconds(now / 1'000'000'000);
  log.mutable_time()->set_nanos(static_cast<int32_t>(now % 1'000'000'000));
  log.set_level(std::string(printed.level));
  log.set_text(std::string(printed.text));
  OnLog(rank, std::move(log));
}

void Attempt::OnLog(int rank, v1::LogLine line) {
  line.set_rank(rank);
  line.set_attempt(command_.attempt());
  line.set_text(Abridged(line.text(), kMaxLogText));
  const bool passes = log_budget_.Take(SteadyNow());
  if (passes) last_lines_.clear();
  if (last_lines_.size() == kLastLines) last_lines_.pop_front();
  last_lines_.push_back(std::move(line));
  if (passes) EmitLines(log_budget_.TakeLeftOut());
}

void Attempt::EmitLines(int64_t left_out) {
  if (left_out > 0) {
    v1::LogLine gap = last_lines_.front();
    gap.set_level("warning");
    gap.set_text(absl::StrCat(left_out,
                              " lines before this one are left out: more than ",
                              LogBudget::kPerSecond, " a second"));
    last_lines_.push_front(std::move(gap));
  }
  for (v1::LogLine& line : std::exchange(last_lines_, {})) {
    v1::WorkerEvent event;
    *event.mutable_log() = std::move(line);
    Emit(std::move(event));
  }
}

std::string Attempt::WrongAbout(int rank, const v1::StagedFiles& staged) const {
  const std::string& manifest = staged.manifest_sha256();
  if (!IsSha256Hex(staged.state_sha256()) ||
      !(rank == 0 ? IsSha256Hex(manifest) : manifest.empty())) {
    return "a staged checkpoint without its digests";
  }
  if (rank != 0) return "";
  // It is uploaded, and removed afterwards.
  const std::string& output = staged.output_directory();
  if (!IsBeneathOneOf(staged.directory(), {WorkDirectory() + "/staged"}) ||
      (!output.empty() && !IsBeneathOneOf(output, {WorkDirectory()}))) {
    return absl::StrCat("what it has staged does not lie below ",
                        WorkDirectory());
  }
  return "";
}

void Attempt::OnStaged(int rank, const v1::StagedFiles& staged) {
  if (abandoned_) return;
  if (const std::string wrong = WrongAbout(rank, staged); !wrong.empty()) {
    return FindRank(rank)->Reject(wrong);
  }
  if (rank != 0) {
    v1::RankStaged share;
    share.set_step(staged.step());
    share.set_rank(rank);
    share.set_manifest_sha256(staged.manifest_sha256());
    share.set_state_sha256(staged.state_sha256());
    share.set_final(staged.final());
    if (held_) {
      KeepShare(std::move(share));
    } else {
      EmitStaged(std::move(share));
    }
    v1::TrainerCommand taken;
    taken.mutable_stage_taken()->set_step(staged.step());
    if (RankProcess* process = FindRank(rank)) process->Send(taken);
    return;
  }
  // While the coordinator is away or slow, only the newest is worth keeping.
  const size_t in_flight = uploading_ ? 1 : 0;
  const std::vector<v1::StagedFiles> superseded(uploads_.begin() + in_flight,
                                                uploads_.end());
  uploads_.resize(in_flight);
  uploads_.push_back(staged);
  // First, so that no next start takes half a directory for a checkpoint.
  Remember();
  for (const v1::StagedFiles& files : superseded) {
    CountSkipped(files, staged.step());
    ReleaseStage(files);
  }
  UploadNext();
}

void Attempt::KeepShare(v1::RankStaged share) {
  const auto same_rank = [rank = share.rank()](const v1::RankStaged& other) {
    return other.rank() == rank;
  };
  if (std::ranges::count_if(shares_, same_rank) == kKeptShares) {
    shares_.erase(std::ranges::find_if(shares_, same_rank));
  }
  shares_.push_back(std::move(share));
  Remember();
}

void Attempt::EmitStaged(v1::RankStaged staged) {
  v1::WorkerEvent event;
  *event.mutable_staged() = std::move(staged);
  Emit(std::move(event));
}

void Attempt::CountSkipped(const v1::StagedFiles& staged, int64_t newer_step) {
  if (++skipped_ > 1) return;
  EmitNotice(
      "CheckpointSkipped",
      absl::StrCat("step ", staged.step(), " was not stored: step ", newer_step,
                   " was saved before it could be uploaded. While that "
                   "lasts, only the newest is; a longer "
                   "checkpoint.every gives uploads more time"));
}

void Attempt::UploadNext() {
  if (uploading_ || uploads_.empty() || held_ || ended()) return;
  uploading_ = true;
  transfers_->Add([weak = weak_from_this(), &environment = environment_,
                   staged = uploads_.front()](Cancellation& cancellation) {
    const absl::Time begin = absl::Now();
    const auto upload = [&]() -> absl::StatusOr<v1::RankStaged> {
      v1::RankStaged event;
      event.set_step(staged.step());
      event.set_manifest_sha256(staged.manifest_sha256());
      event.set_state_sha256(staged.state_sha256());
      event.set_final(staged.final());
      ASSIGN_OR_RETURN(
          *event.mutable_files(),
          environment.fetcher.Store(staged.directory(), cancellation));
      if (!staged.output_directory().empty()) {
        ASSIGN_OR_RETURN(
            *event.mutable_output(),
            environment.fetcher.Store(staged.output_directory(), cancellation));
      }
      return event;
    };
    absl::StatusOr<v1::RankStaged> event = upload();
    if (event.ok()) {
      environment.metrics.CheckpointUploaded(*event, absl::Now() - begin);
    }
    environment.loop.Post([weak, staged, event = std::move(event)] {
      if (const auto self = weak.lock()) self->OnUploaded(staged, event);
    });
  });
}

void Attempt::OnUploaded(const v1::StagedFiles& staged,
                         absl::StatusOr<v1::RankStaged> staged_event) {
  // Stop may have given it up.
  if (ended() || uploads_.empty() || uploads_.front().step() != staged.step()) {
    return;
  }
  uploading_ = false;
  // GoOn hands it in; the store has its content.
  if (held_) return;
  if (staged_event.ok()) {
    EmitStaged(*std::move(staged_event));
  } else {
    const std::string told =
        EmitLost(staged, std::string(staged_event.status().message()));
    if (staged.final()) {
      cause_ = AgentCause{.failure_class = ClassOfStatus(staged_event.status()),
                          .message = told,
                          .result_lost = true};
    }
  }
  uploads_.pop_front();
  // First, as in OnStaged.
  Remember();
  ReleaseStage(staged);
  UploadNext();
  MaybeEnd();
}

void Attempt::EmitNotice(const std::string& type, const std::string& message) {
  v1::WorkerEvent event;
  event.mutable_notice()->set_type(type);
  event.mutable_notice()->set_message(message);
  Emit(std::move(event));
}

std::string Attempt::EmitLost(const v1::StagedFiles& staged,
                              const std::string& why) {
  LogWarning("checkpoint is lost",
             {{"attempt", name_}, {"step", staged.step()}, {"reason", why}});
  const std::string message =
      absl::StrCat("step ", staged.step(), " was not stored: ", why);
  EmitNotice("CheckpointLost", message);
  return message;
}

void Attempt::ReleaseStage(const v1::StagedFiles& staged) {
  const absl::Status removed = RemoveRecursively(staged.directory());
  if (!removed.ok()) {
    LogWarning("staged checkpoint stays behind",
               {{"attempt", name_}, {"error", removed}});
  }
  v1::TrainerCommand taken;
  taken.mutable_stage_taken()->set_step(staged.step());
  if (RankProcess* process = FindRank(0)) process->Send(taken);
}

void Attempt::OnRankEnd(int rank) {
  RankProcess& process = *FindRank(rank);
  ends_.push_back(process.end());
  const RankEnd& end = ends_.back();
  LogInfo("rank ended", {{"attempt", name_},
                         {"rank", rank},
                         {"exit_code", end.exit_code},
                         {"signal", end.signal}});
  const bool well =
      end.exit_code == 0 && end.signal == 0 && end.result.has_value();
  if (!well && kill_timer_ == 0) {
    // The others would wait for it for ever; they may also know why it died.
    kill_timer_ = environment_.loop.RunAfter(environment_.timeouts.peers,
                                             [this] { KillRanks(); });
  }
  EmitLines(log_budget_.TakeLeftOut() -
            static_cast<int64_t>(last_lines_.size()));
  if (AllEnded() && HasLeft()) {
    Remember();
    LogInfo(held_ ? "ranks have left; their last checkpoint is kept"
                  : "ranks have left; their last checkpoint is being uploaded",
            {{"attempt", name_},
             {"step", uploads_.empty() ? shares_.back().step()
                                       : uploads_.back().step()}});
    if (held_) KeepHeld();
  }
  on_change_();
  MaybeEnd();
}

void Attempt::Stop(bool save, absl::Duration grace, AgentCause cause) {
  if (ended()) return;
  const std::string why = cause.message;
  if (!cause_.has_value()) cause_ = std::move(cause);
  if (phase_ == Phase::kFetching) {
    transfers_->Cancel();
    phase_ = Phase::kSpawning;
    return MaybeEnd();
  }
  if (!save || running_.empty()) {
    // What was staged so far is not waited for either.
    if (!save) {
      abandoned_ = true;
      if (left()) {
        phase_ = Phase::kRunning;
        for (const v1::StagedFiles& staged : uploads_) {
          EmitLost(staged, why);
        }
      }
      transfers_->Cancel();
      uploads_.clear();
      shares_.clear();
      uploading_ = false;
    }
    KillRanks();
    return MaybeEnd();
  }
  v1::TrainerCommand stop;
  stop.mutable_stop();
  for (const auto& rank : ranks_) rank->Send(stop);
  LogInfo("ranks are told to save and leave",
          {{"attempt", name_}, {"grace", absl::FormatDuration(grace)}});
  environment_.loop.CancelTimer(kill_timer_);
  kill_timer_ = environment_.loop.RunAfter(grace, [this] { KillRanks(); });
}

void Attempt::KillRanks() {
  for (const auto& rank : ranks_) rank->Kill();
}

void Attempt::Watch() {
  watch_timer_ =
      environment_.loop.RunAfter(kWatchInterval, [this] { Watch(); });
  // By the ticks before this one: a loop that was held up runs its timers
  // before it reads what the ranks have said meanwhile.
  const std::optional<std::string> overdue = Overdue();
  const absl::Time now = SteadyNow();
  progress_.Tick(now - watched_at_);
  watched_at_ = now;
  // Ticks, as in ProgressWatch: this process may have been stopped itself.
  stopped_ =
      StoppedRanks().empty() ? absl::ZeroDuration() : stopped_ + kWatchInterval;
  if (!overdue.has_value() || cause_.has_value()) return;
  LogWarning("attempt is overdue", {{"attempt", name_}, {"reason", *overdue}});
  cause_ =
      AgentCause{.failure_class = v1::FAILURE_CLASS_INFRA, .message = *overdue};
  if (phase_ == Phase::kFetching) {
    transfers_->Cancel();
    phase_ = Phase::kSpawning;
  }
  KillRanks();
  MaybeEnd();
}

// Why the attempt cannot be waited for any longer.
std::optional<std::string> Attempt::Overdue() const {
  const RankTimeouts& timeouts = environment_.timeouts;
  switch (phase_) {
    case Phase::kFetching:
    case Phase::kSpawning:
      if (progress_.silence() <= timeouts.prepare) return std::nullopt;
      return absl::StrCat("not prepared within ",
                          absl::FormatDuration(timeouts.prepare));
    case Phase::kStarted:
    case Phase::kRunning:
      break;
    default:
      return std::nullopt;
  }
  // Only uploads are left then, which retry for as long as they must.
  if (AllEnded()) return std::nullopt;
  const std::string stopped = absl::StrJoin(StoppedRanks(), ", ");
  const std::optional<std::string> stalled = progress_.Stalled();
  if (stalled.has_value()) {
    return absl::StrCat(*stalled, stopped.empty() ? ": a rank hangs" : ": ",
                        stopped);
  }
  if (stopped_ <= timeouts.step) return std::nullopt;
  return absl::StrCat(stopped, " for ", absl::FormatDuration(stopped_));
}

std::vector<std::string> Attempt::StoppedRanks() const {
  std::vector<std::string> stopped;
  for (const auto& rank : ranks_) {
    if (rank->ended() || rank->pid() == 0) continue;
    const std::optional<ProcStat> stat = ReadProcStat(rank->pid());
    if (stat.has_value() && stat->state == 'T') {
      stopped.push_back(
          absl::StrCat("rank ", rank->end().rank, " is stopped (SIGSTOP)"));
    }
  }
  return stopped;
}

bool Attempt::AllEnded() const {
  return std::ranges::all_of(ranks_,
                             [](const auto& rank) { return rank->ended(); });
}

void Attempt::MaybeEnd() {
  const bool early = phase_ <= Phase::kFetching;
  if (ended() || early || !AllEnded() || HasLeft()) return;
  if (ranks_.empty() && !cause_.has_value() && !former_end_.has_value()) return;
  phase_ = Phase::kEnded;
  transfers_->Cancel();
  const v1::AttemptEnded ended = Outcome();
  LogInfo("attempt ended",
          {{"attempt", name_},
           {"complete", ended.complete() ? "true" : "false"},
           {"class", v1::FailureClass_Name(ended.failure_class())},
           {"message", ended.message()}});
  if (skipped_ > 1) {
    EmitNotice("CheckpointSkipped",
               absl::StrCat(skipped_,
                            " checkpoints were not stored: a newer one was "
                            "saved before they could be uploaded"));
  }
  v1::WorkerEvent event;
  *event.mutable_ended() = ended;
  Emit(std::move(event));
  environment_.metrics.AttemptEnded(command_.job_id(), ended);
  on_change_();
}

v1::AttemptEnded Attempt::Outcome() const {
  const bool lost = cause_.has_value() && cause_->result_lost;
  return former_end_.has_value() && !lost ? *former_end_
                                          : DecideOutcome(ends_, cause_);
}

v1::AttemptInventory Attempt::inventory() const {
  v1::AttemptInventory inventory;
  inventory.set_job_id(command_.job_id());
  inventory.set_attempt(command_.attempt());
  inventory.set_term(term_);
  for (const auto& rank : ranks_) {
    if (!rank->ended()) inventory.add_ranks(rank->end().rank);
  }
  inventory.set_last_step(last_step_);
  return inventory;
}

void Attempt::Emit(v1::WorkerEvent event) {
  event.set_job_id(command_.job_id());
  event.set_attempt(command_.attempt());
  event.set_term(term_);
  environment_.emit(std::move(event));
}

RankProcess* Attempt::FindRank(int rank) {
  for (const auto& process : ranks_) {
    if (process->end().rank == rank) return process.get();
  }
  return nullptr;
}

const v1::Device* Attempt::DeviceOf(
    const v1::RankAssignment& assignment) const {
  for (const v1::Device& device : environment_.devices) {
    if (device.name() == assignment.device()) return &device;
  }
  return nullptr;
}

}  // namespace qlora::agent
