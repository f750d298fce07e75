// One memory plan for a whole gang, whose ranks may have unlike devices.
#pragma once

#include "absl/status/statusor.h"
#include "common/spec/memory_plan.h"
#include "worker/trainer/parallel/communicator.h"

namespace qlora::trainer {

// Collective. `input` is this rank's own: its budget, threads and arithmetic.
// The plan is for this rank, but computes in the type and with the rows per
// forward that every rank uses: `compute_dtype: auto` becomes bfloat16 only
// where it is fast for all, and rows are the fewest that any rank planned;
// halvings begin at those. What is kept or recomputed is each rank's own
// affair; with fewer rows the plan's memory is an upper bound.
//
// All ranks fail together: ResourceExhausted names the rank that has no room,
// or says that no rank has anything left to save after earlier attempts.
absl::StatusOr<MemoryPlan> PlanTogether(MemoryPlanInput input,
                                        Communicator& communicator);

}  // namespace qlora::trainer
