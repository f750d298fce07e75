#include "worker/trainer/generation_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/plural.h"
#include "common/spec/memory_plan.h"

namespace qlora::trainer {
namespace {

// While a tensor is read it is held as float32 and as it is kept, one of a
// block also cut for the ranks of a gang.
int64_t LoadingBytes(const SlabLayout& block, const SlabLayout& outer) {
  int64_t most = 0;
  for (const auto& [layout, copies] :
       {std::pair(&block, 3), std::pair(&outer, 1)}) {
    for (const SlabTensor& t : layout->tensors) {
      most = std::max(most, 4 * t.num_elements() + copies * (t.end - t.begin));
    }
  }
  return most;
}

MemoryPlan Sum(const GenerationNeeds& needs, const SlabOptions& slabs) {
  const ModelDescription& model = *needs.model;
  const SlabLayout block = MakeBlockLayout(model, slabs);
  const SlabLayout outer = MakeOuterLayout(model, slabs);
  const int64_t element = slabs.dense == WeightFormat::kBfloat16 ? 2 : 4;
  const int64_t cache =
      2 * model.num_layers * needs.positions * model.kv_size() * element;
  // The workspace is made when the base is there.
  const int64_t loading =
      std::max<int64_t>(0, LoadingBytes(block, outer) - needs.workspace_bytes);
  MemoryPlan plan;
  plan.items = {{"base", block.bytes * model.num_layers + outer.bytes},
                {"adapter", needs.adapter_bytes},
                {"keys and values", cache},
                {"workspace", needs.workspace_bytes - cache},
                {"loading", loading},
                {"runtime", kRuntimeBytes}};
  return plan;
}

}  // namespace

absl::StatusOr<SlabOptions> PlanGeneration(const GenerationNeeds& needs) {
  SlabOptions slabs = needs.slabs;
  slabs.nf4_values = slabs.linear == WeightFormat::kNf4;
  slabs.linear = slabs.dense;
  if (needs.budget == 0 || Sum(needs, slabs).total() <= needs.budget) {
    return slabs;
  }
  const MemoryPlan least = Sum(needs, needs.slabs);
  if (least.total() <= needs.budget) return needs.slabs;
  return absl::ResourceExhaustedError(absl::StrCat(
      "generating texts of up to ", Plural(needs.positions, "token"), " needs ",
      least.total() >> 20, " MiB", AgainstBudget(least, needs.budget),
      " use a worker with more memory, or ask for fewer new tokens"));
}

}  // namespace qlora::trainer
