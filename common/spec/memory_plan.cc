#include "common/spec/memory_plan.h"

#include <algorithm>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/plural.h"
#include "common/base/status_macros.h"

namespace qlora {
namespace {

// Enough tokens for the products to run near their best; where each forward
// gathers the base, enough to hide that.
constexpr int64_t kGoodTokens = 1024;
constexpr int64_t kGoodShardedTokens = 2048;
constexpr int64_t kFewTokens = 512;

// No machine has so much, and sums of a few such numbers do not overflow: what
// a product of the largest sizes allowed is cut to.
constexpr int64_t kHuge = int64_t{1} << 58;

int64_t Times(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kHuge
                                                : std::min(product, kHuge);
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What does not depend on the micro-batch.
struct Job {
  const ModelDescription& model;
  const JobSpec& spec;
  std::vector<LinearShape> linears;
  ComputeDtype dtype = ComputeDtype::kFloat32;
  int64_t element = 4;
  int world_size = 1;
  int threads = 1;
  int64_t data_bytes = 0;
  int64_t rank = 0;
  int64_t trainable = 0;
  // Lowest layer that a backward enters.
  int first = 0;
  bool evaluation = false;

  bool full() const { return spec.method == Method::kFull; }
};

int64_t Nf4Bytes(const JobSpec& spec, int64_t n) {
  const int64_t blocks = CeilDiv(n, spec.quantization.block_size);
  const int64_t scales = spec.quantization.double_quant
                             ? blocks + 4 * CeilDiv(blocks, 256) + 4
                             : 4 * blocks;
  return CeilDiv(n, 2) + scales;
}

int64_t BlockBytes(const Job& job) {
  int64_t bytes = 2 * job.model.hidden_size * 4;
  for (const LinearShape& l : job.linears) {
    const int64_t n = l.out_features * l.in_features;
    bytes += job.spec.method == Method::kQlora ? Nf4Bytes(job.spec, n)
                                               : n * job.element;
    if (l.bias) bytes += l.out_features * 4;
  }
  return bytes;
}

int64_t OuterBytes(const Job& job) {
  const int64_t tables = job.model.tie_word_embeddings ? 1 : 2;
  const int64_t hidden = job.model.hidden_size;
  return tables * job.model.vocab_size * hidden * job.element + hidden * 4;
}

// What a layer's backward takes: of the MLP gate and up, and apart from them
// all but the layer's input.
int64_t MlpBytes(const Job& job, int64_t tokens) {
  return Times(tokens, 2 * job.model.intermediate_size * job.element);
}

int64_t AttentionBytes(const Job& job, int64_t tokens) {
  const ModelDescription& m = job.model;
  const int64_t compute = 2 * m.q_size() + 2 * m.kv_size() + 7 * job.rank;
  const int64_t floats = m.hidden_size + 2 + m.num_heads;
  return Times(tokens, compute * job.element + floats * 4);
}

int64_t InputBytes(const Job& job, int64_t tokens) {
  return Times(tokens, job.model.hidden_size * 4);
}

int64_t AttentionScratch(const Job& job, int64_t tokens) {
  constexpr int64_t kTile = 64;
  const int64_t padded = CeilDiv(job.model.head_dim, 32) * 32;
  const int64_t rows = CeilDiv(tokens, kTile) * kTile;
  return Times(job.threads * 4,
               Times(5 * rows + 3 * kTile, padded) + 4 * kTile * kTile);
}

// Buffers that all layers share, but what recomputed ones do.
int64_t SharedBytes(const Job& job, int64_t tokens) {
  const ModelDescription& m = job.model;
  int64_t weight = 0, widest = 0;
  for (const LinearShape& l : job.linears) {
    weight = std::max(weight, l.out_features * l.in_features);
    widest = std::max({widest, l.out_features, l.in_features});
  }
  const int64_t wide =
      std::max(m.intermediate_size, 2 * (m.q_size() + m.kv_size()));
  int64_t row = 2 * m.hidden_size + wide + job.rank;
  int64_t fixed = weight;
  if (job.element == 2) {
    row += 2 * m.hidden_size;
    fixed = std::max(weight, job.rank * widest) + job.rank * widest;
  }
  int64_t bytes = 0;
  if (!job.full() && job.spec.lora.dropout > 0) {
    row += widest;
    bytes += tokens * 8;
  }
  bytes += Times(Times(tokens, row) + fixed, job.element);
  // The stream after the last layer and its gradient; rotary table.
  bytes += Times(tokens, (2 * m.hidden_size + m.head_dim) * 4);
  bytes += AttentionScratch(job, tokens);
  return bytes;
}

int64_t LogitsBytes(const Job& job, int64_t tokens) {
  constexpr int64_t kPanel = int64_t{1} << 20;
  const int64_t chunk = LossChunkTokens(job.model, tokens);
  const int64_t hidden = job.model.hidden_size;
  // A part of a head that is stored in another type.
  const int64_t panel =
      std::clamp<int64_t>(kPanel / hidden, 1, job.model.vocab_size) * hidden;
  return (chunk * (job.model.vocab_size + 2 * hidden) + panel) * job.element +
         chunk * 12 + tokens * 16;
}

// While a rank reads its share of the base it holds one tensor as float32 and
// as it is kept.
int64_t LoadingBytes(const Job& job) {
  int64_t most =
      job.model.vocab_size * job.model.hidden_size * (4 + job.element);
  for (const LinearShape& l : job.linears) {
    const int64_t n = l.out_features * l.in_features;
    const int64_t kept = job.spec.method == Method::kQlora
                             ? Nf4Bytes(job.spec, n)
                             : n * job.element;
    // Cut for the other ranks as well.
    most = std::max(most, n * 4 + 3 * kept);
  }
  return most;
}

// The layers of a plan that saves memory in so many of 2 * layers steps: MLPs
// are recomputed from the first layer on, then whole layers likewise. A byte
// saved costs about the same arithmetic in both ways, but for attention, which
// grows with the length; an MLP needs nothing but its two products again.
std::vector<LayerMemory> SaveMemory(int layers, int steps) {
  std::vector<LayerMemory> result(layers, LayerMemory::kKeep);
  for (int i = 0; i < steps; ++i) {
    result[i % layers] =
        i < layers ? LayerMemory::kRecomputeMlp : LayerMemory::kRecompute;
  }
  return result;
}

int StepsOf(const std::vector<LayerMemory>& layers) {
  int steps = 0;
  for (const LayerMemory layer : layers) steps += static_cast<int>(layer);
  return steps;
}

// What the layers hold for the backward, and what they share to recompute.
struct LayerBytes {
  int64_t kept = 0;
  int64_t shared = 0;
};

LayerBytes SumLayers(const Job& job, int64_t tokens,
                     const std::vector<LayerMemory>& layers) {
  const int64_t mlp = MlpBytes(job, tokens);
  const int64_t attention = AttentionBytes(job, tokens);
  LayerBytes sum;
  if (layers.empty()) sum.shared = mlp + attention;
  for (size_t l = job.first; l < layers.size(); ++l) {
    const int64_t own_mlp = layers[l] == LayerMemory::kKeep ? mlp : 0;
    const int64_t own_attention =
        layers[l] == LayerMemory::kRecompute ? 0 : attention;
    const int64_t own = InputBytes(job, tokens) + own_mlp + own_attention;
    sum.kept = std::min(sum.kept + own, kHuge);
    sum.shared =
        std::max(sum.shared, mlp - own_mlp + attention - own_attention);
  }
  return sum;
}

MemoryPlan MakePlan(const Job& job, int rows, int steps) {
  const int64_t tokens = int64_t{rows} * job.spec.data.max_seq_len;
  const int layers = job.model.num_layers;
  MemoryPlan plan;
  plan.micro_batch_size = rows;
  plan.compute_dtype = job.dtype;
  if (!job.evaluation) plan.layers = SaveMemory(layers, steps);
  const auto add = [&](std::string what, int64_t bytes) {
    if (bytes > 0) plan.items.push_back({std::move(what), bytes});
  };
  if (!job.full()) {
    add("base (sharded)",
        CeilDiv(BlockBytes(job), job.world_size) * layers + OuterBytes(job));
    if (job.world_size > 1) {
      add("gathered blocks",
          BlockBytes(job) * std::min(layers, kGatheredBlocks));
    }
  }
  add(job.full() ? "parameters" : "adapter", job.trainable * 4);
  if (!job.evaluation) {
    add("gradients", job.trainable * 4);
    add("optimizer", job.trainable * 8);
  }
  const LayerBytes sum = SumLayers(job, tokens, plan.layers);
  add("activations", sum.kept);
  add("workspace", SharedBytes(job, tokens) + sum.shared);
  add("logits", LogitsBytes(job, tokens));
  // The data's arrays are copied once, before all else is there.
  int64_t loading = 2 * job.data_bytes;
  if (!job.full()) {
    // The base and the adapter stand by then, nothing else is used yet.
    const int64_t held = plan.items[0].bytes + job.trainable * 4;
    loading = std::max(loading, job.data_bytes + held + LoadingBytes(job));
  }
  add("data", job.data_bytes);
  add("loading", loading - plan.total());
  add("runtime", kRuntimeBytes);
  return plan;
}

// The lowest layer with an adapter.
int FirstLayer(const std::vector<std::string>& modules, int layers) {
  int first = layers;
  for (const std::string& module : modules) {
    for (int l = 0; l < first; ++l) {
      if (absl::StartsWith(module, absl::StrCat("model.layers.", l, "."))) {
        first = l;
      }
    }
  }
  return first;
}

int64_t AdapterSize(const Job& job, const std::vector<std::string>& modules) {
  int64_t total = 0;
  for (const std::string& module : modules) {
    for (const LinearShape& l : job.linears) {
      if (absl::EndsWith(module, "." + l.name)) {
        total += job.rank * (l.in_features + l.out_features);
      }
    }
  }
  return total;
}

absl::StatusOr<Job> MakeJob(const MemoryPlanInput& input) {
  const JobSpec& spec = *input.spec;
  Job job{.model = *input.model,
          .spec = spec,
          .linears = BlockLinears(*input.model)};
  job.dtype = ChooseComputeDtype(spec.train.compute_dtype, input.fast_bfloat16);
  job.element = job.dtype == ComputeDtype::kBfloat16 ? 2 : 4;
  job.world_size = std::max(1, input.world_size);
  job.threads = std::max(1, input.threads);
  job.data_bytes = std::min(input.data_bytes, kHuge);
  job.evaluation = input.evaluation;
  if (job.full()) {
    job.trainable = ParameterCount(job.model);
    return job;
  }
  job.rank = spec.lora.rank;
  ASSIGN_OR_RETURN(const std::vector<std::string> modules,
                   MatchTargetModules(job.model, spec.lora.target_modules));
  job.first = FirstLayer(modules, job.model.num_layers);
  job.trainable = AdapterSize(job, modules);
  return job;
}

// Rows worth trying, best first.
std::vector<int> RowChoices(const JobSpec& spec, int world_size) {
  const int64_t most =
      std::max<int64_t>(1, CeilDiv(spec.train.global_batch_size, world_size));
  if (spec.train.micro_batch_size > 0) {
    return {
        static_cast<int>(std::min<int64_t>(most, spec.train.micro_batch_size))};
  }
  const bool gathers = world_size > 1 && spec.method != Method::kFull;
  const int64_t good = std::max<int64_t>(
      1, (gathers ? kGoodShardedTokens : kGoodTokens) / spec.data.max_seq_len);
  std::vector<int> rows;
  for (int64_t r = std::min(most, good); r >= 1; r /= 2) {
    // As many forwards as with r, but of like size.
    rows.push_back(static_cast<int>(CeilDiv(most, CeilDiv(most, r))));
  }
  return rows;
}

// Marks NothingLeftError.
constexpr char kLeastMemory[] = "qlora.spec/least_memory";

absl::Status DoesNotFit(const MemoryPlan& plan, ActivationMemory wish,
                        int64_t budget, const char* what = "a rank needs ") {
  const bool kept = wish == ActivationMemory::kKeep;
  const bool recomputed =
      std::all_of(plan.layers.begin(), plan.layers.end(),
                  [](LayerMemory l) { return l == LayerMemory::kRecompute; });
  return absl::ResourceExhaustedError(absl::StrCat(
      what, plan.total() >> 20, " MiB with ",
      kept         ? "train.activation_memory: keep"
      : recomputed ? "every layer recomputed"
                   : "nothing more to recompute",
      " and ", Plural(plan.micro_batch_size, "row"), " per forward",
      AgainstBudget(plan, budget),
      kept ? " set train.activation_memory to auto," : "",
      " use a shorter data.max_seq_len, more devices or a smaller base"));
}

absl::StatusOr<MemoryPlan> PlanEvaluation(const Job& job, int64_t budget) {
  MemoryPlan plan = MakePlan(job, /*rows=*/1, /*steps=*/0);
  if (budget == 0 || plan.total() <= budget) return plan;
  return absl::ResourceExhaustedError(absl::StrCat(
      "evaluating a row needs ", plan.total() >> 20, " MiB",
      AgainstBudget(plan, budget), " use a worker with more memory"));
}

// The first of `choices` that fits, recomputing as little as it can.
absl::StatusOr<MemoryPlan> ChoosePlan(const Job& job,
                                      const std::vector<int>& choices,
                                      int64_t budget) {
  const int most_steps = 2 * job.model.num_layers;
  const int64_t row_tokens = job.spec.data.max_seq_len;
  const int64_t most = std::min(budget > 0 ? budget : kHuge, kHuge - 1);
  const auto fits = [&](const MemoryPlan& plan) {
    return plan.total() <= most;
  };
  const ActivationMemory wish = job.spec.train.activation_memory;
  if (wish != ActivationMemory::kRecompute) {
    for (const int rows : choices) {
      const bool few = rows * row_tokens <
                       std::min(kFewTokens, choices.front() * row_tokens);
      MemoryPlan plan = MakePlan(job, rows, 0);
      if (fits(plan) && (!few || wish == ActivationMemory::kKeep)) return plan;
    }
    if (wish == ActivationMemory::kKeep) {
      return DoesNotFit(MakePlan(job, choices.back(), 0), wish, budget);
    }
  }
  for (const int rows : choices) {
    MemoryPlan smallest = MakePlan(job, rows, most_steps);
    if (!fits(smallest)) continue;
    if (wish == ActivationMemory::kRecompute) return smallest;
    for (int steps = 1; steps < most_steps; ++steps) {
      MemoryPlan plan = MakePlan(job, rows, steps);
      if (fits(plan)) return plan;
    }
    return smallest;
  }
  return DoesNotFit(MakePlan(job, choices.back(), most_steps), wish, budget);
}

// What recomputing saves of.
int64_t LayersTotal(const Job& job, const MemoryPlan& plan) {
  const int64_t tokens =
      int64_t{plan.micro_batch_size} * job.spec.data.max_seq_len;
  const LayerBytes sum = SumLayers(job, tokens, plan.layers);
  return sum.kept + sum.shared;
}

// A plan that holds less than one that ran out of memory, or the same with
// nothing_left.
MemoryPlan Halve(const Job& job, MemoryPlan plan) {
  int steps = StepsOf(plan.layers);
  if (plan.micro_batch_size > 1) {
    return MakePlan(job, plan.micro_batch_size / 2, steps);
  }
  const int most_steps =
      job.spec.train.activation_memory == ActivationMemory::kAuto
          ? 2 * job.model.num_layers
          : steps;
  while (steps < most_steps) {
    steps += (most_steps - steps + 1) / 2;
    MemoryPlan less = MakePlan(job, 1, steps);
    // Layers below the first with an adapter hold nothing in either way.
    if (LayersTotal(job, less) < LayersTotal(job, plan)) return less;
  }
  plan.nothing_left = true;
  return plan;
}

}  // namespace

ComputeDtype ChooseComputeDtype(ComputeDtype wanted, bool fast_bfloat16) {
  if (wanted != ComputeDtype::kAuto) return wanted;
  return fast_bfloat16 ? ComputeDtype::kBfloat16 : ComputeDtype::kFloat32;
}

int64_t LossChunkTokens(const ModelDescription& model, int64_t max_tokens) {
  constexpr int64_t kLogits = int64_t{24} << 20;
  const int64_t fit = kLogits / std::max<int64_t>(1, model.vocab_size);
  return std::min(max_tokens, std::max<int64_t>(16, fit));
}

absl::StatusOr<MemoryPlan> PlanMemory(const MemoryPlanInput& input) {
  ASSIGN_OR_RETURN(const Job job, MakeJob(input));
  if (job.evaluation) return PlanEvaluation(job, input.budget);
  std::vector<int> choices = RowChoices(*input.spec, job.world_size);
  absl::StatusOr<MemoryPlan> plan = ChoosePlan(job, choices, input.budget);
  int halvings = input.micro_batch_halvings;
  for (; !plan.ok() && choices.back() > 1 && halvings > 0; --halvings) {
    for (int& rows : choices) rows = std::max(1, rows / 2);
    plan = ChoosePlan(job, choices, input.budget);
  }
  for (; plan.ok() && !plan->nothing_left && halvings > 0; --halvings) {
    plan = Halve(job, *std::move(plan));
  }
  return plan;
}

std::string AgainstBudget(const MemoryPlan& plan, int64_t budget) {
  std::string text =
      budget > 0 ? absl::StrCat(", and may use ", budget >> 20, " MiB:") : ":";
  for (const MemoryItem& item : plan.items) {
    absl::StrAppend(&text, " ", item.what, " ", item.bytes >> 20, " MiB,");
  }
  text.back() = ';';
  return text;
}

absl::Status NothingLeftError(const MemoryPlanInput& input,
                              const MemoryPlan& plan) {
  absl::Status status =
      DoesNotFit(plan, input.spec->train.activation_memory, input.budget,
                 "out of memory, and nothing is left to save: a rank planned ");
  status.SetPayload(kLeastMemory, absl::Cord("1"));
  return status;
}

bool IsLeastMemory(const absl::Status& status) {
  return status.GetPayload(kLeastMemory).has_value();
}

}  // namespace qlora
