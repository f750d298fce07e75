#include "worker/trainer/model/block_binding.h"

namespace qlora::trainer {
namespace {

const float* At(std::span<const float> params, int64_t place) {
  return place < 0 ? nullptr : params.data() + place;
}

float* GradAt(std::span<float> grads, int64_t place) {
  return place < 0 || grads.empty() ? nullptr : grads.data() + place;
}

LinearWeight Dense(std::span<const float> params, int64_t weight, int64_t bias,
                   int64_t out_features, int64_t in_features) {
  LinearWeight w;
  w.out_features = out_features;
  w.in_features = in_features;
  w.data = At(params, weight);
  w.bias = At(params, bias);
  return w;
}

LoraWeights BindLora(const BindOptions& o, int layer, int linear) {
  const LinearPlaces& places = o.parameters->blocks[layer].linears[linear];
  if (places.lora_a < 0) return {};
  LoraWeights lora;
  lora.rank = o.lora->rank;
  lora.scale = o.lora->scale;
  lora.a = At(o.params, places.lora_a);
  lora.b = At(o.params, places.lora_b);
  lora.da = GradAt(o.grads, places.lora_a);
  lora.db = GradAt(o.grads, places.lora_b);
  if (!o.row_keys.empty()) {
    lora.dropout = {o.lora->dropout, o.row_keys,
                    static_cast<uint32_t>(layer * kBlockLinears + linear)};
  }
  return lora;
}

void BindFull(const BindOptions& o, const BlockPlaces& places,
              BlockArgs& args) {
  const std::vector<LinearShape> shapes = BlockLinears(*o.model);
  args.input_norm = At(o.params, places.input_norm);
  args.post_attention_norm = At(o.params, places.post_attention_norm);
  args.dinput_norm = GradAt(o.grads, places.input_norm);
  args.dpost_attention_norm = GradAt(o.grads, places.post_attention_norm);
  for (int i = 0; i < kBlockLinears; ++i) {
    const LinearPlaces& linear = places.linears[i];
    args.linears[i] = Dense(o.params, linear.weight, linear.bias,
                            shapes[i].out_features, shapes[i].in_features);
    args.dweight[i] = GradAt(o.grads, linear.weight);
    args.dbias[i] = GradAt(o.grads, linear.bias);
  }
}

kernels::Activation KernelActivation(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return kernels::Activation::kSilu;
    case Activation::kGelu:
      return kernels::Activation::kGelu;
    case Activation::kGeluTanh:
      break;
  }
  return kernels::Activation::kGeluTanh;
}

}  // namespace

BlockArgs BindBlock(const BindOptions& o, int layer,
                    const BlockWeights& weights) {
  BlockArgs args;
  const BlockPlaces& places = o.parameters->blocks[layer];
  if (places.input_norm >= 0 && !o.params.empty()) {
    BindFull(o, places, args);
    return args;
  }
  args.input_norm = weights.input_norm;
  args.post_attention_norm = weights.post_attention_norm;
  args.linears = {weights.q,    weights.k,  weights.v,   weights.o,
                  weights.gate, weights.up, weights.down};
  for (int i = 0; i < kBlockLinears && !o.params.empty(); ++i) {
    args.lora[i] = BindLora(o, layer, i);
  }
  return args;
}

OuterWeights BindOuter(const BindOptions& o, const OuterWeights& weights) {
  const Parameters& p = *o.parameters;
  if (p.embedding < 0 || o.params.empty()) return weights;
  const int64_t vocab = o.model->vocab_size;
  const int64_t hidden = o.model->hidden_size;
  return {.embedding = Dense(o.params, p.embedding, -1, vocab, hidden),
          .final_norm = At(o.params, p.final_norm),
          .head = Dense(o.params, p.head, -1, vocab, hidden)};
}

BlockContext MakeBlockContext(const ModelDescription& model, Dtype dtype,
                              const Workspace& workspace) {
  BlockContext context;
  context.shape = {model.num_heads, model.num_kv_heads, model.head_dim};
  context.hidden = model.hidden_size;
  context.intermediate = model.intermediate_size;
  context.norm_eps = static_cast<float>(model.rms_norm_eps);
  context.activation = KernelActivation(model.activation);
  context.dtype = dtype;
  context.rotary = workspace.rotary;
  context.scratch = workspace.block;
  return context;
}

}  // namespace qlora::trainer
