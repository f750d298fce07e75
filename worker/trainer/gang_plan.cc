#include "worker/trainer/gang_plan.h"

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "worker/trainer/parallel/agreement.h"

namespace qlora::trainer {
namespace {

// Only the rank that has no room knows why.
absl::Status OfRank(const absl::Status& status, bool had_bfloat16, bool agreed,
                    const Communicator& communicator) {
  if (status.ok() || communicator.size() == 1) return status;
  absl::Status named(
      status.code(),
      absl::StrCat("rank ", communicator.rank(), ": ",
                   std::string(status.message()),
                   had_bfloat16 && !agreed
                       ? "; another rank has no fast bfloat16, so that auto is "
                         "float32: train.compute_dtype: bfloat16 takes half"
                       : ""));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& value) {
    named.SetPayload(url, value);
  });
  return named;
}

// The rows per forward that all ranks would use without halvings. A rank that
// has no room for the rows that the user chose may have some for half of them.
absl::StatusOr<int> RowsBeforeHalving(MemoryPlanInput input,
                                      Communicator& communicator) {
  input.micro_batch_halvings = 0;
  const absl::StatusOr<MemoryPlan> plan = PlanMemory(input);
  int64_t most = -(plan.ok() ? plan->micro_batch_size
                             : std::max(1, input.spec->train.micro_batch_size));
  RETURN_IF_ERROR(communicator.AllReduceMax({&most, 1}));
  return static_cast<int>(-most);
}

}  // namespace

absl::StatusOr<MemoryPlan> PlanTogether(MemoryPlanInput input,
                                        Communicator& communicator) {
  const bool fast = input.fast_bfloat16;
  int64_t slow = fast ? 0 : 1;
  RETURN_IF_ERROR(communicator.AllReduceMax({&slow, 1}));
  input.fast_bfloat16 = slow == 0;
  // Halved is what the gang ran with, not what this rank alone would have.
  JobSpec spec = *input.spec;
  if (input.micro_batch_halvings > 0 && communicator.size() > 1) {
    ASSIGN_OR_RETURN(spec.train.micro_batch_size,
                     RowsBeforeHalving(input, communicator));
    input.spec = &spec;
  }
  absl::StatusOr<MemoryPlan> plan = PlanMemory(input);
  RETURN_IF_ERROR(
      AgreeOn(communicator,
              OfRank(plan.status(), fast, input.fast_bfloat16, communicator)));
  std::array<int64_t, 2> most = {-plan->micro_batch_size,
                                 plan->nothing_left ? 0 : 1};
  RETURN_IF_ERROR(communicator.AllReduceMax(most));
  if (most[1] == 0) return NothingLeftError(input, *plan);
  plan->micro_batch_size = static_cast<int>(-most[0]);
  return plan;
}

}  // namespace qlora::trainer
