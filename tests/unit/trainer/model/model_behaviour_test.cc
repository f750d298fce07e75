// What the model promises beside its gradients: packing, recomputation,
// dropout, the memory plan, decoding, refusals.
#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "tests/unit/trainer/model/model_fixture.h"
#include "worker/trainer/ops/parallel.h"

namespace qlora::trainer {
namespace {

class ModelBehaviour : public ::testing::Test {
 protected:
  void SetUp() override {
    description_ = SmallModel(true, true);
    loaded_ =
        LoadTensors(description_, StrongTensors(description_), DenseSlabs());
    options_ = LoraModelOptions(description_, {}, 300);
  }

  std::unique_ptr<Model> Make() {
    return Model::Create(description_, options_).value();
  }

  // The gradient of everything given, added up.
  std::vector<float> Grads(Model& model, const std::vector<MicroBatch>& batches,
                           const std::vector<DropoutKey>& keys = {}) {
    params_ = RandomParams(model.layout().total, 5, 0.2f);
    std::vector<float> grads(params_.size());
    loss_ = 0;
    for (size_t i = 0; i < batches.size(); ++i) {
      auto sum =
          model.ForwardBackward(batches[i], *loaded_->source, params_, 0.1f,
                                keys.empty() ? DropoutKey{} : keys[i], grads);
      EXPECT_TRUE(sum.ok()) << sum.status();
      loss_ += sum->loss;
    }
    return grads;
  }

  ModelDescription description_;
  std::unique_ptr<LoadedModel> loaded_;
  ModelOptions options_;
  std::vector<float> params_;
  double loss_ = 0;
};

double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(a[i] - b[i], 2);
    norm += std::pow(b[i], 2);
  }
  return std::sqrt(error / norm);
}

// Document d of a batch alone.
MicroBatch Cut(const MicroBatch& batch, size_t d) {
  const auto begin = batch.offsets[d], end = batch.offsets[d + 1];
  MicroBatch one;
  one.tokens.assign(batch.tokens.begin() + begin, batch.tokens.begin() + end);
  one.targets.assign(batch.targets.begin() + begin,
                     batch.targets.begin() + end);
  one.positions.assign(batch.positions.begin() + begin,
                       batch.positions.begin() + end);
  one.offsets = {0, end - begin};
  one.trained_tokens =
      end - begin - std::ranges::count(one.targets, kIgnoredLabel);
  return one;
}

TEST_F(ModelBehaviour, PackedDocumentsEqualDocumentsApart) {
  const MicroBatch packed = RandomBatch(description_, {65, 3, 130, 1, 40}, 2);
  std::vector<MicroBatch> apart;
  for (size_t d = 0; d < 5; ++d) apart.push_back(Cut(packed, d));
  auto model = Make();
  const auto together = Grads(*model, {packed});
  const double loss = loss_;
  const auto summed = Grads(*model, apart);
  EXPECT_NEAR(loss_, loss, 1e-6 * loss);
  EXPECT_LE(Distance(summed, together), 2e-6);
}

TEST_F(ModelBehaviour, RecomputeEqualsKeepBitwise) {
  options_.lora.dropout = 0.2f;
  const MicroBatch batch = RandomBatch(description_, {65, 30}, 2);
  const DropoutKey key = {1, 2, {10, 11}};
  auto keep = Make();
  const auto expected = Grads(*keep, {batch}, {key});
  const double loss = loss_;
  int64_t bytes = keep->workspace_bytes();
  using enum LayerMemory;
  for (const std::vector<LayerMemory>& layers :
       {std::vector(5, kRecomputeMlp),
        std::vector{kKeep, kRecompute, kRecomputeMlp, kRecomputeMlp,
                    kRecompute},
        std::vector(5, kRecompute)}) {
    options_.layers = layers;
    auto saving = Make();
    EXPECT_LT(saving->workspace_bytes(), bytes);
    bytes = saving->workspace_bytes();
    EXPECT_EQ(Grads(*saving, {batch}, {key}), expected);
    EXPECT_EQ(loss_, loss);
    const LossSum sum =
        saving->Evaluate(batch, *loaded_->source, params_).value();
    EXPECT_EQ(sum.loss,
              keep->Evaluate(batch, *loaded_->source, params_).value().loss);
    EXPECT_EQ(Grads(*saving, {batch}, {key}), expected);
  }
}

TEST_F(ModelBehaviour, RepeatsBitwise) {
  const MicroBatch batch = RandomBatch(description_, {65, 30, 99}, 2);
  auto model = Make();
  const auto first = Grads(*model, {batch});
  EXPECT_EQ(Grads(*model, {batch}), first);
  EXPECT_EQ(Grads(*Make(), {batch}), first);
}

TEST_F(ModelBehaviour, EvaluateGivesTheTrainingLossWithoutDropout) {
  const MicroBatch batch = RandomBatch(description_, {65, 30}, 2);
  auto model = Make();
  Grads(*model, {batch});
  const LossSum sum = model->Evaluate(batch, *loaded_->source, params_).value();
  EXPECT_EQ(sum.loss, loss_);
  EXPECT_EQ(sum.tokens, batch.trained_tokens);
}

TEST_F(ModelBehaviour, DropoutDoesNotDependOnTheBatching) {
  options_.lora.dropout = 0.3f;
  const MicroBatch packed = RandomBatch(description_, {20, 33, 50}, 2);
  auto model = Make();
  const auto together = Grads(*model, {packed}, {{7, 3, {100, 200, 300}}});
  // Documents in another order, in batches of their own.
  const auto apart =
      Grads(*model, {Cut(packed, 2), Cut(packed, 0), Cut(packed, 1)},
            {{7, 3, {300}}, {7, 3, {100}}, {7, 3, {200}}});
  EXPECT_LE(Distance(apart, together), 2e-6);
  EXPECT_GT(
      Distance(Grads(*model, {packed}, {{7, 4, {100, 200, 300}}}), together),
      0.05);
  EXPECT_GT(
      Distance(Grads(*model, {packed}, {{8, 3, {100, 200, 300}}}), together),
      0.05);
}

// The mean over many masks approaches the gradient's own scale: the kept
// elements are scaled up.
TEST_F(ModelBehaviour, DropoutKeepsTheMean) {
  const MicroBatch batch = RandomBatch(description_, {64}, 2);
  auto plain = Make();
  Grads(*plain, {batch});
  const double expected = loss_;
  options_.lora.dropout = 0.1f;
  auto model = Make();
  double total = 0;
  for (uint64_t step = 0; step < 50; ++step) {
    Grads(*model, {batch}, {{7, step, {1}}});
    total += loss_;
  }
  EXPECT_NEAR(total / 50, expected, 0.02 * expected);
}

TEST_F(ModelBehaviour, IgnoredTargetsGiveNothing) {
  MicroBatch batch = RandomBatch(description_, {30}, 2);
  std::ranges::fill(batch.targets, kIgnoredLabel);
  batch.trained_tokens = 0;
  const auto grads = Grads(*Make(), {batch});
  EXPECT_EQ(loss_, 0);
  EXPECT_TRUE(std::ranges::all_of(grads, [](float g) { return g == 0; }));
}

TEST_F(ModelBehaviour, NotANumberReachesTheLoss) {
  auto model = Make();
  auto params = RandomParams(model->layout().total, 5, 0.2f);
  params[3] = NAN;
  const MicroBatch batch = RandomBatch(description_, {30}, 2);
  EXPECT_TRUE(std::isnan(
      model->Evaluate(batch, *loaded_->source, params).value().loss));
}

JobSpec PlanSpec(Method method) {
  JobSpec spec;
  spec.method = method;
  spec.lora.rank = 3;
  spec.data.max_seq_len = 100;
  spec.train.micro_batch_size = 3;
  return spec;
}

int64_t PlannedWorkspace(const MemoryPlan& plan) {
  int64_t bytes = 0;
  for (const MemoryItem& item : plan.items) {
    if (item.what == "activations" || item.what == "workspace" ||
        item.what == "logits") {
      bytes += item.bytes;
    }
  }
  return bytes;
}

// Saves this share of what recomputing every layer would; spec is input's.
MemoryPlan PlanThatSaves(double share, JobSpec& spec, MemoryPlanInput input) {
  const int64_t most = PlanMemory(input)->total();
  spec.train.activation_memory = ActivationMemory::kRecompute;
  const int64_t least = PlanMemory(input)->total();
  spec.train.activation_memory = ActivationMemory::kAuto;
  input.budget =
      most - static_cast<int64_t>(share * static_cast<double>(most - least));
  return PlanMemory(input).value();
}

// A width at which rounding pieces up to a cache line is nothing.
TEST_F(ModelBehaviour, WorkspaceIsWhatThePlanSays) {
  description_.hidden_size = 192;
  description_.head_dim = 48;
  description_.intermediate_size = 320;
  description_.rope_inv_freq.assign(24, 0.5f);
  for (const auto& [method, rank] :
       {std::pair(Method::kLora, 3), std::pair(Method::kLora, 330),
        std::pair(Method::kFull, 0)}) {
    for (const auto dtype : {ComputeDtype::kFloat32, ComputeDtype::kBfloat16}) {
      for (const double dropout : {0.0, 0.1}) {
        // Nothing recomputed, some MLPs, some whole layers, all.
        for (const double saved : {0.0, 0.2, 0.7, 1.0}) {
          JobSpec spec = PlanSpec(method);
          spec.lora.rank = rank;
          spec.train.compute_dtype = dtype;
          spec.lora.dropout = dropout;
          if (method == Method::kLora) {
            spec.lora.target_modules = {"down_proj", "q_proj"};
          }
          MemoryPlanInput input;
          input.model = &description_;
          input.spec = &spec;
          input.threads = NumThreads();
          const MemoryPlan plan = PlanThatSaves(saved, spec, input);
          ModelOptions options;
          options.method = method;
          options.compute_dtype = plan.compute_dtype;
          if (method == Method::kLora) {
            options =
                LoraModelOptions(description_, spec.lora.target_modules, 0);
            options.compute_dtype = plan.compute_dtype;
            options.lora.rank = rank;
            options.lora.dropout = static_cast<float>(dropout);
          }
          options.layers = plan.layers;
          options.max_tokens =
              int64_t{plan.micro_batch_size} * spec.data.max_seq_len;
          const auto model = Model::Create(description_, options).value();
          const auto actual = static_cast<double>(model->workspace_bytes());
          EXPECT_NEAR(static_cast<double>(PlannedWorkspace(plan)), actual,
                      0.01 * actual);
        }
      }
    }
  }
}

TEST_F(ModelBehaviour, EvaluationPlan_HoldsForwardsOnly) {
  const auto trained = Make();
  const auto params = RandomParams(trained->layout().total, 5, 0.2f);
  const MicroBatch batch = RandomBatch(description_, {60, 40}, 2);
  JobSpec spec = PlanSpec(Method::kLora);
  spec.train.compute_dtype = ComputeDtype::kFloat32;
  MemoryPlanInput input;
  input.model = &description_;
  input.spec = &spec;
  input.threads = NumThreads();
  const MemoryPlan training = PlanMemory(input).value();
  input.evaluation = true;
  const MemoryPlan plan = PlanMemory(input).value();
  EXPECT_EQ(plan.micro_batch_size, 1);
  EXPECT_TRUE(plan.layers.empty());
  EXPECT_LT(plan.total(), training.total());
  for (const MemoryItem& item : plan.items) {
    EXPECT_NE(item.what, "optimizer");
    EXPECT_NE(item.what, "gradients");
    EXPECT_NE(item.what, "activations");
  }

  options_.layers = plan.layers;
  options_.max_tokens = spec.data.max_seq_len;
  const auto model = Make();
  const auto actual = static_cast<double>(model->workspace_bytes());
  EXPECT_NEAR(static_cast<double>(PlannedWorkspace(plan)), actual,
              0.05 * actual);
  EXPECT_EQ(model->Evaluate(batch, *loaded_->source, params).value().loss,
            trained->Evaluate(batch, *loaded_->source, params).value().loss);
  std::vector<float> grads(params.size());
  EXPECT_EQ(
      model->ForwardBackward(batch, *loaded_->source, params, 1, {}, grads)
          .status()
          .code(),
      absl::StatusCode::kFailedPrecondition);

  input.budget = plan.total();
  EXPECT_TRUE(PlanMemory(input).ok());
  --input.budget;
  const absl::Status refused = PlanMemory(input).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(absl::StrContains(refused.message(), "more memory")) << refused;
}

TEST_F(ModelBehaviour, PlanRecomputesJustEnough) {
  JobSpec spec = PlanSpec(Method::kQlora);
  MemoryPlanInput input;
  input.model = &description_;
  input.spec = &spec;
  const MemoryPlan roomy = PlanMemory(input).value();
  EXPECT_EQ(std::ranges::count(roomy.layers, LayerMemory::kKeep), 5);
  spec.train.activation_memory = ActivationMemory::kRecompute;
  const MemoryPlan small = PlanMemory(input).value();
  EXPECT_EQ(std::ranges::count(small.layers, LayerMemory::kKeep), 0);
  spec.train.activation_memory = ActivationMemory::kAuto;
  input.budget = roomy.total() - 1;
  using enum LayerMemory;
  std::vector<LayerMemory> before = roomy.layers;
  // Every budget less than what the last plan took saves more.
  while (input.budget >= small.total()) {
    const MemoryPlan plan = PlanMemory(input).value();
    EXPECT_LE(plan.total(), input.budget);
    EXPECT_GT(plan.layers, before);
    // No layer is recomputed whole while another keeps its MLP.
    EXPECT_FALSE(std::ranges::count(plan.layers, kRecompute) > 0 &&
                 std::ranges::count(plan.layers, kKeep) > 0);
    input.budget = plan.total() - 1;
    before = plan.layers;
  }
  EXPECT_EQ(before, std::vector(5, kRecompute));
  input.budget = small.total() - 1;
  const absl::Status refused = PlanMemory(input).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(absl::StrContains(refused.message(), "activations")) << refused;
}

TEST_F(ModelBehaviour, HalvedPlan_TakesLessAndKeepsNoMore) {
  JobSpec spec = PlanSpec(Method::kQlora);
  spec.train.global_batch_size = 64;
  spec.train.micro_batch_size = 0;
  MemoryPlanInput input;
  input.model = &description_;
  input.spec = &spec;
  const MemoryPlan whole = PlanMemory(input).value();
  ASSERT_GE(whole.micro_batch_size, 8);
  input.budget = whole.total() - 1;
  const MemoryPlan tight = PlanMemory(input).value();
  int64_t before = tight.total();
  for (const int halvings : {1, 2, 3}) {
    input.micro_batch_halvings = halvings;
    const MemoryPlan plan = PlanMemory(input).value();
    EXPECT_EQ(plan.micro_batch_size, tight.micro_batch_size >> halvings);
    EXPECT_EQ(plan.layers, tight.layers);
    EXPECT_LT(plan.total(), before);
    before = plan.total();
  }
  input.micro_batch_halvings = 40;
  EXPECT_EQ(PlanMemory(input).value().micro_batch_size, 1);
}

// Rows of the default 2048 tokens: one is all that is planned.
TEST_F(ModelBehaviour, HalvedPlanOfOneRow_RecomputesMoreUntilNothingIsLeft) {
  JobSpec spec = PlanSpec(Method::kQlora);
  spec.data = {};
  spec.train = {};
  MemoryPlanInput input;
  input.model = &description_;
  input.spec = &spec;
  MemoryPlan before = PlanMemory(input).value();
  EXPECT_EQ(before.micro_batch_size, 1);
  EXPECT_EQ(std::ranges::count(before.layers, LayerMemory::kKeep), 5);
  using enum LayerMemory;
  for (const auto& layers : {std::vector(5, kRecomputeMlp),
                             std::vector{kRecompute, kRecompute, kRecompute,
                                         kRecomputeMlp, kRecomputeMlp},
                             std::vector{kRecompute, kRecompute, kRecompute,
                                         kRecompute, kRecomputeMlp},
                             std::vector(5, kRecompute)}) {
    ++input.micro_batch_halvings;
    const MemoryPlan plan = PlanMemory(input).value();
    EXPECT_EQ(plan.layers, layers);
    EXPECT_FALSE(plan.nothing_left);
    EXPECT_LT(plan.total(), before.total());
    before = plan;
  }
  ++input.micro_batch_halvings;
  EXPECT_TRUE(PlanMemory(input)->nothing_left);
  EXPECT_EQ(PlanMemory(input)->layers, before.layers);

  // What the user has decided is not for a halving to change.
  input.micro_batch_halvings = 1;
  for (const auto wish :
       {ActivationMemory::kKeep, ActivationMemory::kRecompute}) {
    spec.train.activation_memory = wish;
    EXPECT_TRUE(PlanMemory(input)->nothing_left);
    spec.train.micro_batch_size = 2;
    EXPECT_FALSE(PlanMemory(input)->nothing_left);
    spec.train.micro_batch_size = 0;
  }
}

// Recomputing the layers below the first adapter would save nothing.
TEST_F(ModelBehaviour, HalvedPlanOfUpperLayers_SavesEachTime) {
  JobSpec spec = PlanSpec(Method::kQlora);
  spec.train.micro_batch_size = 1;
  spec.lora.target_modules = {"model.layers.3.mlp.down_proj"};
  MemoryPlanInput input;
  input.model = &description_;
  input.spec = &spec;
  const int64_t whole = PlanMemory(input)->total();
  input.micro_batch_halvings = 1;
  const int64_t once = PlanMemory(input)->total();
  EXPECT_LT(once, whole);
  input.micro_batch_halvings = 2;
  EXPECT_LT(PlanMemory(input)->total(), once);
  input.micro_batch_halvings = 3;
  EXPECT_TRUE(PlanMemory(input)->nothing_left);
}

TEST_F(ModelBehaviour, NothingLeft_SaysWhatThePlanDoes) {
  JobSpec spec = PlanSpec(Method::kQlora);
  spec.train.micro_batch_size = 1;
  MemoryPlanInput input;
  input.model = &description_;
  input.spec = &spec;
  input.micro_batch_halvings = 9;
  const auto reason = [&] {
    const MemoryPlan plan = PlanMemory(input).value();
    EXPECT_TRUE(plan.nothing_left);
    const absl::Status status = NothingLeftError(input, plan);
    EXPECT_TRUE(IsLeastMemory(status));
    return std::string(status.message());
  };
  EXPECT_TRUE(absl::StrContains(reason(), "with every layer recomputed"));
  // The one layer that holds anything takes as much either way.
  spec.lora.target_modules = {"model.layers.4.mlp.down_proj"};
  EXPECT_TRUE(absl::StrContains(reason(), "with nothing more to recompute"))
      << reason();
  spec.train.activation_memory = ActivationMemory::kKeep;
  EXPECT_TRUE(absl::StrContains(reason(), "activation_memory: keep"));

  // A rank without room is another matter: there may be a larger one.
  for (const int rows : {1, 4}) {
    spec.train.micro_batch_size = rows;
    input.budget = 1;
    const absl::Status refused = PlanMemory(input).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(absl::StrContains(refused.message(), "1 row per forward"));
    EXPECT_FALSE(IsLeastMemory(refused));
  }
}

TEST_F(ModelBehaviour, HalvedPlan_FitsWhereTheChosenMicroBatchDoesNot) {
  JobSpec spec = PlanSpec(Method::kQlora);
  spec.train.global_batch_size = 64;
  spec.train.micro_batch_size = 8;
  spec.train.activation_memory = ActivationMemory::kRecompute;
  MemoryPlanInput input;
  input.model = &description_;
  input.spec = &spec;
  input.budget = PlanMemory(input).value().total() - 1;
  EXPECT_FALSE(PlanMemory(input).ok());
  input.micro_batch_halvings = 1;
  const MemoryPlan halved = PlanMemory(input).value();
  EXPECT_EQ(halved.micro_batch_size, 4);
  EXPECT_LE(halved.total(), input.budget);
}

TEST_F(ModelBehaviour, DecoderEqualsTheFullForward) {
  auto model = Make();
  const auto params = RandomParams(model->layout().total, 5, 0.2f);
  const MicroBatch batch = RandomBatch(description_, {150}, 8);
  auto decoder = Decoder::Create(description_, options_, 150).value();
  double nll = 0;
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    // A prompt of 70 tokens at once, then one by one.
    if (i > 0 && i < 70) continue;
    const size_t n = i == 0 ? 70 : 1;
    const size_t first = i;
    const size_t last = first + n - 1;
    const std::span<const float> logits =
        decoder
            ->Append({batch.tokens.data() + first, n}, *loaded_->source, params)
            .value();
    if (batch.targets[last] == kIgnoredLabel) continue;
    double sum = 0;
    for (const float l : logits) sum += std::exp(l);
    nll += std::log(sum) - logits[batch.targets[last]];
  }
  MicroBatch tail = batch;
  std::fill_n(tail.targets.begin(), 69, kIgnoredLabel);
  const double expected =
      model->Evaluate(tail, *loaded_->source, params).value().loss;
  EXPECT_NEAR(nll, expected, 1e-5 * expected);
  EXPECT_EQ(decoder->Append({batch.tokens.data(), 1}, *loaded_->source, params)
                .status()
                .code(),
            absl::StatusCode::kOutOfRange);
  decoder->Reset();
  EXPECT_TRUE(
      decoder->Append({batch.tokens.data(), 1}, *loaded_->source, {}).ok());
}

// As generating holds a base in NF4: with its values, or packed.
TEST_F(ModelBehaviour, DecoderOfAPackedBase_GivesTheSameLogits) {
  const MicroBatch batch = RandomBatch(description_, {40}, 8);
  for (const auto dtype : {ComputeDtype::kFloat32, ComputeDtype::kBfloat16}) {
    options_.compute_dtype = dtype;
    SlabOptions slabs;
    if (dtype == ComputeDtype::kBfloat16) slabs.dense = WeightFormat::kBfloat16;
    std::vector<std::vector<float>> logits;
    for (const bool packed : {false, true}) {
      slabs.nf4_values = !packed;
      slabs.linear = packed ? WeightFormat::kNf4 : slabs.dense;
      const auto loaded =
          LoadTensors(description_, StrongTensors(description_), slabs);
      const auto decoder = Decoder::Create(description_, options_, 40).value();
      const auto last =
          decoder->Append(batch.tokens, *loaded->source, {}).value();
      logits.emplace_back(last.begin(), last.end());
    }
    EXPECT_EQ(logits[0], logits[1]);
  }
}

TEST_F(ModelBehaviour, RefusesWhatDoesNotFit) {
  auto model = Make();
  const auto params = RandomParams(model->layout().total, 5, 0.2f);
  std::vector<float> grads(params.size());
  const auto status = [&](const MicroBatch& batch) {
    return model->ForwardBackward(batch, *loaded_->source, params, 1, {}, grads)
        .status();
  };
  const MicroBatch good = RandomBatch(description_, {10, 5}, 1);
  MicroBatch bad = good;
  bad.tokens[3] = 50;
  EXPECT_TRUE(absl::StrContains(status(bad).message(), "vocabulary of 50"));
  bad = good;
  bad.targets[2] = -7;
  EXPECT_TRUE(absl::StrContains(status(bad).message(), "target -7"));
  bad = good;
  bad.offsets.back() = 16;
  EXPECT_EQ(status(bad).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status(RandomBatch(description_, {301}, 1)).code(),
            absl::StatusCode::kInvalidArgument);
  options_.lora.modules.clear();
  EXPECT_EQ(Model::Create(description_, options_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ModelBehaviour, SkippingMakesTheSameCalls) {
  struct Recorder : BlockSource {
    explicit Recorder(BlockSource& source) : inner(source) {}
    void Prefetch(int layer) override {
      calls.push_back(absl::StrCat("p", layer));
      inner.Prefetch(layer);
    }
    absl::StatusOr<BlockWeights> Acquire(int layer) override {
      calls.push_back(absl::StrCat("a", layer));
      return inner.Acquire(layer);
    }
    void Release(int layer) override {
      calls.push_back(absl::StrCat("r", layer));
      inner.Release(layer);
    }
    absl::StatusOr<OuterWeights> AcquireOuter() override {
      calls.push_back("ao");
      return inner.AcquireOuter();
    }
    BlockSource& inner;
    std::vector<std::string> calls;
  };
  options_.lora.modules = {"model.layers.2.self_attn.q_proj"};
  auto model = Make();
  const auto params = RandomParams(model->layout().total, 5, 0.2f);
  std::vector<float> grads(params.size());
  Recorder run(*loaded_->source), skip(*loaded_->source);
  ASSERT_TRUE(model
                  ->ForwardBackward(RandomBatch(description_, {9}, 1), run,
                                    params, 1, {}, grads)
                  .ok());
  ASSERT_TRUE(model->SkipForwardBackward(skip).ok());
  EXPECT_EQ(run.calls, skip.calls);
  EXPECT_EQ(run.calls.back(), "r2");
}

TEST(InitializeTrainable, DependsOnSeedAndNameAlone) {
  const ModelDescription m = SmallModel(false, true);
  ModelOptions options = LoraModelOptions(m, {"q_proj", "up_proj"}, 10);
  const auto all = Model::Create(m, options).value();
  options.lora.modules = {"model.layers.3.mlp.up_proj"};
  const auto one = Model::Create(m, options).value();
  std::vector<float> a(all->layout().total), b(one->layout().total);
  InitializeTrainable(m, all->layout(), 42, a);
  InitializeTrainable(m, one->layout(), 42, b);
  const char* name = "model.layers.3.mlp.up_proj.lora_A.weight";
  const TrainableTensor* in_all = all->layout().Find(name);
  ASSERT_NE(in_all, nullptr);
  const float bound = 1 / std::sqrt(24.0f);
  float largest = 0;
  for (int64_t i = 0; i < in_all->size; ++i) {
    EXPECT_EQ(a[in_all->offset + i], b[i]);
    largest = std::max(largest, std::fabs(b[i]));
  }
  EXPECT_LE(largest, bound);
  EXPECT_GT(largest, 0.9f * bound);
  for (size_t i = in_all->size; i < b.size(); ++i) EXPECT_EQ(b[i], 0);
  std::vector<float> other(b.size());
  InitializeTrainable(m, one->layout(), 43, other);
  EXPECT_NE(other, b);
}

TEST(InitializeTrainable, FullHasTheConfiguredDeviation) {
  ModelDescription m = SmallModel(false, true);
  m.vocab_size = 2000;
  ModelOptions options;
  options.method = Method::kFull;
  options.layers.assign(5, LayerMemory::kKeep);
  options.max_tokens = 8;
  const auto model = Model::Create(m, options).value();
  std::vector<float> params(model->layout().total);
  InitializeTrainable(m, model->layout(), 1, params);
  const TrainableTensor* table =
      model->layout().Find("model.embed_tokens.weight");
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < table->size; ++i) {
    sum += params[i];
    squares += params[i] * params[i];
  }
  const auto n = static_cast<double>(table->size);
  EXPECT_NEAR(std::sqrt(squares / n), m.initializer_range, 3e-4);
  EXPECT_NEAR(sum / n, 0, 3e-4);
  EXPECT_EQ(params[model->layout().Find("model.norm.weight")->offset], 1);
  EXPECT_EQ(params[model->layout()
                       .Find("model.layers.0.self_attn.q_proj.bias")
                       ->offset],
            0);
}

}  // namespace
}  // namespace qlora::trainer
