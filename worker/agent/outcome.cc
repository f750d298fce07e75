#include "worker/agent/outcome.h"

#include <signal.h>
#include <string.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "worker/agent/text.h"

namespace qlora::agent {
namespace {

bool EndedWell(const RankEnd& end) {
  return end.signal == 0 && end.exit_code == 0 && !end.failure.has_value();
}

bool HasMessage(const RankEnd& end) {
  return end.failure.has_value() && !end.failure->message().empty();
}

std::string Describe(const RankEnd& end) {
  const std::string rank = absl::StrCat("rank ", end.rank);
  if (HasMessage(end)) {
    return absl::StrCat(rank, ": ",
                        WithoutSourcePlaces(end.failure->message()));
  }
  if (end.out_of_memory) {
    return absl::StrCat(rank, " was killed by the kernel for want of memory");
  }
  if (end.signal != 0) {
    const char* name = ::sigabbrev_np(end.signal);
    return absl::StrCat(rank, " was killed by signal ", end.signal, " (SIG",
                        name == nullptr ? "?" : name, ")");
  }
  if (end.exit_code != 0) {
    return absl::StrCat(rank, " exited with code ", end.exit_code);
  }
  return absl::StrCat(rank, " ended without a result");
}

// A rank whose peer died fails too, and may be seen first.
bool MayBeAConsequence(const RankEnd& end) {
  return end.signal == 0 && ClassOfExit(end) == v1::FAILURE_CLASS_INFRA;
}

const RankEnd* FirstCause(const std::vector<RankEnd>& ends) {
  const RankEnd* first = nullptr;
  for (const RankEnd& end : ends) {
    const bool failed = !EndedWell(end) || !end.result.has_value();
    if (!failed || end.killed_by_agent) continue;
    if (first == nullptr ||
        (MayBeAConsequence(*first) && !MayBeAConsequence(end))) {
      first = &end;
    }
  }
  return first;
}

v1::FailureClass ClassOf(const RankEnd& end) {
  const bool said =
      end.failure.has_value() &&
      end.failure->failure_class() != v1::FAILURE_CLASS_UNSPECIFIED;
  return said ? end.failure->failure_class() : ClassOfExit(end);
}

// Which rank it was is left out where it tells nothing: it was the only one, or
// it found what any other finds in the job, the data and the numbers.
std::string Reason(const std::vector<RankEnd>& ends, const RankEnd& first) {
  const bool of_the_job = ClassOf(first) == v1::FAILURE_CLASS_USER ||
                          ClassOf(first) == v1::FAILURE_CLASS_NUMERICAL;
  const bool said_by_all = std::ranges::all_of(ends, [&](const RankEnd& end) {
    return HasMessage(end) && HasMessage(first) &&
           end.failure->message() == first.failure->message();
  });
  return HasMessage(first) && (of_the_job || said_by_all)
             ? WithoutSourcePlaces(first.failure->message())
             : Describe(first);
}

}  // namespace

v1::FailureClass ClassOfExit(const RankEnd& end) {
  if (end.out_of_memory) return v1::FAILURE_CLASS_OOM;
  if (end.signal == SIGKILL || end.signal == SIGTERM) {
    return v1::FAILURE_CLASS_INFRA;
  }
  if (end.signal != 0) return v1::FAILURE_CLASS_INTERNAL;
  switch (end.exit_code) {
    case 10:
      return v1::FAILURE_CLASS_USER;
    case 11:
      return v1::FAILURE_CLASS_NUMERICAL;
    case 12:
      return v1::FAILURE_CLASS_OOM;
    case 13:
    case 17:
      return v1::FAILURE_CLASS_INFRA;
    case 15:
      return v1::FAILURE_CLASS_DISK;
    default:
      return v1::FAILURE_CLASS_INTERNAL;
  }
}

v1::FailureClass ClassOfStatus(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kPermissionDenied:
      return v1::FAILURE_CLASS_USER;
    case absl::StatusCode::kResourceExhausted:
      return v1::FAILURE_CLASS_DISK;
    case absl::StatusCode::kInternal:
      return v1::FAILURE_CLASS_INTERNAL;
    default:
      return v1::FAILURE_CLASS_INFRA;
  }
}

v1::AttemptEnded DecideOutcome(const std::vector<RankEnd>& ends,
                               const std::optional<AgentCause>& agent_cause) {
  v1::AttemptEnded ended;
  bool all_well = !ends.empty();
  bool stopped = false;
  for (const RankEnd& end : ends) {
    v1::RankExit& exit = *ended.add_ranks();
    exit.set_rank(end.rank);
    exit.set_exit_code(end.exit_code);
    exit.set_signal(end.signal);
    const bool well = EndedWell(end) && end.result.has_value();
    if (!well) exit.set_message(Describe(end));
    if (end.failure.has_value() && end.failure->checkpoint_unusable()) {
      ended.set_checkpoint_unusable(true);
    }
    if (end.failure.has_value() && end.failure->least_memory()) {
      ended.set_least_memory(true);
    }
    all_well &= well;
    stopped |= end.result.has_value() && end.result->stopped();
  }
  if (all_well && !(agent_cause.has_value() && agent_cause->result_lost)) {
    ended.set_complete(!stopped);
    ended.set_stopped(stopped);
    if (stopped && agent_cause.has_value()) {
      ended.set_failure_class(agent_cause->failure_class);
      ended.set_message(agent_cause->message);
    }
    return ended;
  }
  const RankEnd* first = FirstCause(ends);
  if (agent_cause.has_value()) {
    if (agent_cause->checkpoint_unusable) ended.set_checkpoint_unusable(true);
    ended.set_failure_class(agent_cause->failure_class);
    ended.set_message(agent_cause->message);
  } else if (first != nullptr) {
    ended.set_failure_class(ClassOf(*first));
    ended.set_message(Reason(ends, *first));
  } else {
    ended.set_failure_class(v1::FAILURE_CLASS_INFRA);
    ended.set_message("the ranks were ended");
  }
  return ended;
}

}  // namespace qlora::agent
