// What a rank can be told to do. Each blocks until it is done and sends its
// results over the link; errors are classified by failure.h.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "qlora/v1/trainer.pb.h"
#include "worker/trainer/agent_link.h"
#include "worker/trainer/parallel/communicator.h"

namespace qlora::trainer {

absl::Status RunTrain(const v1::TrainerTask& task, AgentLink& link);
absl::Status RunEval(const v1::TrainerTask& task, AgentLink& link);
absl::Status RunGenerate(const v1::TrainerTask& task, AgentLink& link);
absl::Status RunPlan(const v1::TrainerTask& task, AgentLink& link);

// Waits for TrainerStart and joins the other ranks; alone, does neither.
// Cancelled if told to stop meanwhile.
absl::StatusOr<std::unique_ptr<Communicator>> JoinGang(
    const v1::TrainerTask& task, AgentLink& link);

}  // namespace qlora::trainer
