// Lets a gang fail as one: whoever fails first, every rank reports its error.
#pragma once

#include "absl/status/status.h"
#include "worker/trainer/parallel/communicator.h"

namespace qlora::trainer {

// Collective. OK if every rank passes OK; else the status of the lowest rank
// that passed an error, with its payloads, on every rank.
absl::Status AgreeOn(Communicator& communicator, const absl::Status& mine);

}  // namespace qlora::trainer
