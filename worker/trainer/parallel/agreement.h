// Lets a gang fail as one: whoever fails first, every rank reports its error.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/trainer/parallel/communicator.h"

namespace qlora::trainer {

// Collective. OK if every rank passes OK; else the status of the lowest rank
// that passed an error, with its payloads, on every rank.
absl::Status AgreeOn(Communicator& communicator, const absl::Status& mine);

// Collective. OK if every rank passes the same digest (64 hex digits) of
// `what`; else FailedPrecondition, the same on every rank, that names the first
// rank and host that differ from rank 0, and `remedy`.
absl::Status CheckSame(Communicator& communicator, std::string_view what,
                       const std::string& digest, std::string_view remedy);

// Collective. Rank 0 does `work`, and every rank gets its status. The others
// wait however long it takes: the agent watches over rank 0. Calls that follow
// have `timeout`.
absl::Status RunOnLead(Communicator& communicator, absl::Duration timeout,
                       const std::function<absl::Status()>& work);

}  // namespace qlora::trainer
