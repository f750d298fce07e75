// The whole model against autograd in float64.
#include <torch/csrc/autograd/autograd.h>

#include "kernels/backend.h"
#include "tests/unit/trainer/model/autograd_model.h"
#include "tests/unit/trainer/model/model_fixture.h"

namespace qlora::trainer {
namespace {

struct Result {
  LossSum sum;
  std::vector<float> grads;
};

constexpr float kScale = 0.05f;

Result RunModel(Model& model, BlockSource& source, const MicroBatch& batch,
                const std::vector<float>& params) {
  Result result;
  result.grads.resize(params.size());
  auto sum =
      model.ForwardBackward(batch, source, params, kScale, {}, result.grads);
  EXPECT_TRUE(sum.ok()) << sum.status();
  result.sum = sum.value_or(LossSum{});
  return result;
}

at::Tensor ToDouble(const float* data, const std::vector<int64_t>& shape) {
  return at::from_blob(const_cast<float*>(data), shape, at::kFloat)
      .to(at::kDouble);
}

// Loss and gradients equal the oracle's: each tensor's within `tolerance` of
// its norm.
void ExpectOracle(const ModelDescription& description,
                  const std::vector<TestTensor>& tensors,
                  const TrainableLayout& layout,
                  const std::vector<float>& params, double lora_scale,
                  const MicroBatch& batch, const Result& result,
                  double tolerance) {
  AutogradModel oracle;
  oracle.model = description;
  oracle.lora_scale = lora_scale;
  for (const TestTensor& t : tensors) {
    oracle.tensors[t.name] = ToDouble(t.values.data(), t.shape);
  }
  std::vector<at::Tensor> inputs;
  for (const TrainableTensor& t : layout.tensors) {
    inputs.push_back(ToDouble(params.data() + t.offset, t.shape)
                         .clone()
                         .set_requires_grad(true));
    oracle.tensors[t.name] = inputs.back();
  }
  const at::Tensor loss = oracle.Loss(batch);
  EXPECT_NEAR(result.sum.loss, loss.item<double>(),
              2e-6 * std::fabs(loss.item<double>()));
  EXPECT_EQ(result.sum.tokens, batch.trained_tokens);
  const auto grads = torch::autograd::grad({loss * double{kScale}}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TrainableTensor& t = layout.tensors[i];
    const at::Tensor mine = ToDouble(result.grads.data() + t.offset, t.shape);
    const double norm = grads[i].norm().item<double>();
    EXPECT_GT(norm, 0) << t.name;
    EXPECT_LE((mine - grads[i]).norm().item<double>(), tolerance * norm)
        << t.name;
  }
}

void CheckLora(const ModelDescription& description,
               const std::vector<std::string>& targets,
               const std::vector<int>& lengths) {
  const auto tensors = StrongTensors(description);
  auto loaded = LoadTensors(description, tensors, DenseSlabs());
  const ModelOptions options = LoraModelOptions(description, targets, 200);
  auto model = Model::Create(description, options);
  ASSERT_TRUE(model.ok()) << model.status();
  const MicroBatch batch = RandomBatch(description, lengths, 3);
  const auto params = RandomParams((*model)->layout().total, 5, 0.2f);
  const Result result = RunModel(**model, *loaded->source, batch, params);
  ExpectOracle(description, tensors, (*model)->layout(), params,
               options.lora.scale, batch, result, 1e-5);
}

TEST(ModelGradient, LoraOnAllLinears) {
  CheckLora(SmallModel(true, false), {}, {7, 1, 70, 33});
}

TEST(ModelGradient, UntiedWithBiases) {
  ModelDescription m = SmallModel(false, true);
  m.o_bias = m.mlp_bias = true;
  CheckLora(m, {}, {65, 64, 2});
}

TEST(ModelGradient, EveryActivation) {
  ModelDescription m = SmallModel(true, false);
  for (const Activation activation :
       {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    m.activation = activation;
    CheckLora(m, {}, {40, 3});
    // The lowest layer's backward ends at the activation.
    CheckLora(m, {"down_proj"}, {40});
  }
}

TEST(ModelGradient, SomeLinears) {
  const ModelDescription m = SmallModel(true, true);
  CheckLora(m, {"q_proj", "v_proj"}, {40});
  CheckLora(m, {"o_proj"}, {40});
  CheckLora(m, {"up_proj"}, {40});
  CheckLora(m, {"down_proj"}, {40});
  CheckLora(m, {"k_proj", "gate_proj"}, {40});
}

// Nothing below the first adapter is computed, and nothing is missed.
TEST(ModelGradient, SomeLayers) {
  const ModelDescription m = SmallModel(true, false);
  const auto tensors = StrongTensors(m);
  auto loaded = LoadTensors(m, tensors, DenseSlabs());
  for (const char* module :
       {"model.layers.2.self_attn.k_proj", "model.layers.3.self_attn.o_proj",
        "model.layers.4.mlp.gate_proj", "model.layers.1.mlp.down_proj"}) {
    ModelOptions options = LoraModelOptions(m, {}, 64);
    options.lora.modules = {module};
    auto model = Model::Create(m, options);
    ASSERT_TRUE(model.ok()) << model.status();
    const MicroBatch batch = RandomBatch(m, {20, 13}, 3);
    const auto params = RandomParams((*model)->layout().total, 5, 0.2f);
    const Result result = RunModel(**model, *loaded->source, batch, params);
    ExpectOracle(m, tensors, (*model)->layout(), params, options.lora.scale,
                 batch, result, 1e-5);
  }
}

ModelOptions FullOptions(const ModelDescription& m) {
  ModelOptions options;
  options.method = Method::kFull;
  options.layers.assign(m.num_layers, LayerMemory::kKeep);
  options.max_tokens = 200;
  return options;
}

TEST(ModelGradient, Full) {
  for (const bool tied : {true, false}) {
    ModelDescription m = SmallModel(tied, true);
    m.o_bias = m.mlp_bias = true;
    auto loaded = LoadTensors(m, StrongTensors(m), DenseSlabs());
    auto model = Model::Create(m, FullOptions(m));
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->layout().total, ParameterCount(m));
    const auto params = RandomParams((*model)->layout().total, 9, 0.3f);
    const MicroBatch batch = RandomBatch(m, {70, 5}, 4);
    const Result result = RunModel(**model, *loaded->source, batch, params);
    ExpectOracle(m, {}, (*model)->layout(), params, 1, batch, result, 1e-5);
  }
}

// The oracle gets the quantized weights by dequantizing what the source holds:
// here by the loss alone, against the model on dense dequantized weights.
TEST(ModelGradient, QuantizedEqualsItsDenseImage) {
  const ModelDescription m = SmallModel(true, false);
  auto tensors = StrongTensors(m);
  auto quantized = LoadTensors(m, tensors, {});
  std::vector<float> image;
  for (int layer = 0; layer < m.num_layers; ++layer) {
    const BlockWeights block = quantized->source->Acquire(layer).value();
    const LinearWeight all[] = {block.q,    block.k,  block.v,   block.o,
                                block.gate, block.up, block.down};
    const auto shapes = BlockLinears(m);
    for (size_t i = 0; i < shapes.size(); ++i) {
      const std::string name =
          absl::StrCat(BlockPrefix(layer), shapes[i].name, ".weight");
      for (TestTensor& t : tensors) {
        if (t.name != name) continue;
        ASSERT_EQ(kernels::ReferenceBackend().Run(
                      {},
                      kernels::Dequantize{
                          .codes = static_cast<const uint8_t*>(all[i].data),
                          .scales = all[i].scales,
                          .rows = all[i].out_features,
                          .block_size = all[i].block_size,
                          .out = kernels::FloatView(t.values.data(),
                                                    all[i].out_features,
                                                    all[i].in_features)}),
                  kernels::Result::kOk);
      }
    }
    quantized->source->Release(layer);
  }
  auto dense = LoadTensors(m, tensors, DenseSlabs());
  const ModelOptions options = LoraModelOptions(m, {}, 64);
  auto model = Model::Create(m, options).value();
  const MicroBatch batch = RandomBatch(m, {30, 11}, 6);
  const auto params = RandomParams(model->layout().total, 8, 0.2f);
  const Result a = RunModel(*model, *quantized->source, batch, params);
  const Result b = RunModel(*model, *dense->source, batch, params);
  EXPECT_EQ(a.sum.loss, b.sum.loss);
  EXPECT_EQ(a.grads, b.grads);
}

// The oracle's gradients one after another, computed in `type`.
at::Tensor OracleGrads(const ModelDescription& m,
                       const std::vector<TestTensor>& tensors,
                       const TrainableLayout& layout,
                       const std::vector<float>& params, double lora_scale,
                       const MicroBatch& batch, at::ScalarType type) {
  AutogradModel oracle;
  oracle.model = m;
  oracle.lora_scale = lora_scale;
  for (const TestTensor& t : tensors) {
    oracle.tensors[t.name] = ToDouble(t.values.data(), t.shape).to(type);
  }
  std::vector<at::Tensor> inputs;
  for (const TrainableTensor& t : layout.tensors) {
    inputs.push_back(ToDouble(params.data() + t.offset, t.shape)
                         .to(type)
                         .set_requires_grad(true));
    oracle.tensors[t.name] = inputs.back();
  }
  std::vector<at::Tensor> flat;
  for (const at::Tensor& grad :
       torch::autograd::grad({oracle.Loss(batch) * double{kScale}}, inputs)) {
    flat.push_back(grad.to(at::kDouble).flatten());
  }
  return at::cat(flat);
}

// Our gradients in bfloat16 are no worse than LibTorch computing everything in
// it.
void CheckBfloat16(const ModelDescription& m, int rank) {
  const auto tensors = StrongTensors(m);
  auto loaded = LoadTensors(
      m, tensors,
      {.linear = WeightFormat::kBfloat16, .dense = WeightFormat::kBfloat16});
  ModelOptions options = LoraModelOptions(m, {}, 200);
  options.lora.rank = rank;
  options.compute_dtype = ComputeDtype::kBfloat16;
  auto model = Model::Create(m, options).value();
  const MicroBatch batch = RandomBatch(m, {70, 33}, 3);
  const auto params = RandomParams(model->layout().total, 5, 0.2f);
  const Result result = RunModel(*model, *loaded->source, batch, params);
  const auto grads = [&](at::ScalarType type) {
    return OracleGrads(m, tensors, model->layout(), params, options.lora.scale,
                       batch, type);
  };
  const at::Tensor exact = grads(at::kDouble);
  const at::Tensor mine =
      ToDouble(result.grads.data(), {model->layout().total});
  EXPECT_LE((mine - exact).norm().item<double>(),
            (grads(at::kBFloat16) - exact).norm().item<double>());
}

TEST(ModelGradient, Bfloat16IsAsNearAsAutogradInBfloat16) {
  CheckBfloat16(SmallModel(true, true), 3);
}

// LoRA's matrices are larger than any weight then.
TEST(ModelGradient, Bfloat16WithARankAboveTheWidth) {
  CheckBfloat16(SmallModel(true, true), 70);
}

TEST(ModelGradient, Bfloat16FullIsNear) {
  const ModelDescription m = SmallModel(true, true);
  auto loaded = LoadTensors(m, StrongTensors(m), DenseSlabs());
  ModelOptions options = FullOptions(m);
  auto exact = Model::Create(m, options).value();
  options.compute_dtype = ComputeDtype::kBfloat16;
  auto model = Model::Create(m, options).value();
  const auto params = RandomParams(model->layout().total, 9, 0.3f);
  const MicroBatch batch = RandomBatch(m, {70, 5}, 4);
  const Result a = RunModel(*model, *loaded->source, batch, params);
  const Result b = RunModel(*exact, *loaded->source, batch, params);
  EXPECT_NEAR(a.sum.loss, b.sum.loss, 5e-3 * b.sum.loss);
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.grads.size(); ++i) {
    error += std::pow(a.grads[i] - b.grads[i], 2);
    norm += std::pow(b.grads[i], 2);
  }
  EXPECT_LE(std::sqrt(error / norm), 0.05);
}

}  // namespace
}  // namespace qlora::trainer
