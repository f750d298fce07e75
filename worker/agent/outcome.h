// How an attempt ended, from how its ranks did. Pure functions.
//
// A rank's exit code and its failure class (docs/failure_model.md):
//
//   0 ok   10 USER   11 NUMERICAL   12 OOM   13 INFRA   15 DISK
//   16 INTERNAL   17 INFRA (its agent was gone)   other: INTERNAL
//   SIGKILL, SIGTERM: INFRA, or OOM if the kernel says so
//   other signals: INTERNAL
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "qlora/v1/trainer.pb.h"
#include "qlora/v1/worker.pb.h"

namespace qlora::agent {

// How one rank left.
struct RankEnd {
  int rank = 0;
  int exit_code = 0;
  // 0 unless killed by a signal.
  int signal = 0;
  bool out_of_memory = false;
  // The agent killed it: not a cause.
  bool killed_by_agent = false;
  // What the rank said, if it did.
  std::optional<v1::TrainerFailure> failure;
  std::optional<v1::TrainerResult> result;
};

// Why the agent itself ended the attempt.
struct AgentCause {
  v1::FailureClass failure_class = v1::FAILURE_CLASS_UNSPECIFIED;
  std::string message;
  // The ranks may have ended well, but what they made is gone.
  bool result_lost = false;
  // As AttemptEnded says.
  bool checkpoint_unusable = false;
};

v1::FailureClass ClassOfExit(const RankEnd& end);

// The class of an error that kept an attempt from starting.
v1::FailureClass ClassOfStatus(const absl::Status& status);

// `ends` in the order of the exits. The first cause is the agent's, if it has
// one and not all ranks left well; else the first rank that died of something
// other than a lost peer; else the first that failed. Every rank well and none
// stopped: complete. The message is for the user: what the rank said, without
// places in source files, and which rank where that tells something; the rank's
// log has all of it.
v1::AttemptEnded DecideOutcome(const std::vector<RankEnd>& ends,
                               const std::optional<AgentCause>& agent_cause);

}  // namespace qlora::agent
