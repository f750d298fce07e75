// The oracle of the model tests: the same decoder written with LibTorch's ops
// and differentiated by its autograd, in the type of the tensors given.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <string>

#include "common/spec/model_description.h"
#include "worker/trainer/data/batch.h"

namespace qlora::trainer {

struct AutogradModel {
  ModelDescription model;
  // By HF name; LoRA tensors as in TrainableLayout.
  std::map<std::string, at::Tensor> tensors;
  double lora_scale = 1;

  const at::Tensor& At(const std::string& name) const {
    return tensors.at(name);
  }

  at::Tensor Linear(const std::string& module, const at::Tensor& x) const {
    at::Tensor y = x.matmul(At(module + ".weight").t());
    if (tensors.count(module + ".bias")) y = y + At(module + ".bias");
    if (tensors.count(module + ".lora_A.weight")) {
      y = y + x.matmul(At(module + ".lora_A.weight").t())
                      .matmul(At(module + ".lora_B.weight").t()) *
                  lora_scale;
    }
    return y;
  }

  at::Tensor Norm(const std::string& name, const at::Tensor& x) const {
    const at::Tensor mean = (x * x).mean(-1, true);
    return x * (mean + model.rms_norm_eps).rsqrt() * At(name + ".weight");
  }

  // x [T, heads, dim].
  at::Tensor Rotate(const at::Tensor& x) const {
    const int64_t half = model.head_dim / 2;
    const at::Tensor frequency =
        at::tensor(at::ArrayRef<float>(model.rope_inv_freq)).to(x.dtype());
    const at::Tensor angle =
        at::arange(x.size(0), x.options()).unsqueeze(1) * frequency;
    const at::Tensor cos = angle.cos().unsqueeze(1);
    const at::Tensor sin = angle.sin().unsqueeze(1);
    const at::Tensor a = x.slice(-1, 0, half), b = x.slice(-1, half);
    return at::cat({a * cos - b * sin, b * cos + a * sin}, -1);
  }

  at::Tensor Activate(const at::Tensor& x) const {
    if (model.activation == Activation::kSilu) return at::silu(x);
    return at::gelu(x, model.activation == Activation::kGelu ? "none" : "tanh");
  }

  at::Tensor Attend(const std::string& prefix, const at::Tensor& x) const {
    const int64_t n = x.size(0), d = model.head_dim;
    const int64_t group = model.num_heads / model.num_kv_heads;
    const auto heads = [&](const char* name, int64_t count) {
      return Linear(prefix + name, x).view({n, count, d});
    };
    const at::Tensor q = Rotate(heads("q_proj", model.num_heads));
    const at::Tensor k =
        Rotate(heads("k_proj", model.num_kv_heads)).repeat_interleave(group, 1);
    const at::Tensor v =
        heads("v_proj", model.num_kv_heads).repeat_interleave(group, 1);
    const at::Tensor mask = at::full({n, n}, -INFINITY, x.options()).triu(1);
    const at::Tensor scores =
        q.transpose(0, 1).matmul(k.permute({1, 2, 0})) / std::sqrt(d) + mask;
    const at::Tensor out = scores.softmax(-1).matmul(v.transpose(0, 1));
    return Linear(prefix + "o_proj",
                  out.transpose(0, 1).reshape({n, model.num_heads * d}));
  }

  // Logits of one document, [T, vocab].
  at::Tensor Logits(const at::Tensor& tokens) const {
    at::Tensor x = At("model.embed_tokens.weight").index_select(0, tokens);
    for (int layer = 0; layer < model.num_layers; ++layer) {
      const std::string p = "model.layers." + std::to_string(layer) + ".";
      x = x + Attend(p + "self_attn.", Norm(p + "input_layernorm", x));
      const at::Tensor y = Norm(p + "post_attention_layernorm", x);
      const at::Tensor act = Activate(Linear(p + "mlp.gate_proj", y)) *
                             Linear(p + "mlp.up_proj", y);
      x = x + Linear(p + "mlp.down_proj", act);
    }
    const char* head = model.tie_word_embeddings ? "model.embed_tokens.weight"
                                                 : "lm_head.weight";
    return Norm("model.norm", x).matmul(At(head).t());
  }

  // Sum of -log p over the trained targets.
  at::Tensor Loss(const MicroBatch& batch) const {
    at::Tensor total = at::zeros({}, At("model.norm.weight").options());
    for (size_t d = 0; d + 1 < batch.offsets.size(); ++d) {
      const int64_t begin = batch.offsets[d];
      const int64_t n = batch.offsets[d + 1] - begin;
      const auto cut = [&](const std::vector<int32_t>& values) {
        return at::tensor(at::ArrayRef<int32_t>(values.data() + begin, n))
            .to(at::kLong);
      };
      const at::Tensor log_p = Logits(cut(batch.tokens)).log_softmax(-1);
      total = total + at::nll_loss(log_p, cut(batch.targets), {},
                                   at::Reduction::Sum, kIgnoredLabel);
    }
    return total;
  }
};

}  // namespace qlora::trainer
