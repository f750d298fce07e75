// A small random model on disk, for tests.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_description.h"
#include "gtest/gtest.h"

namespace qlora::trainer {

inline ModelDescription SmallModel(bool tied, bool biases) {
  ModelDescription m;
  m.architecture = "llama";
  m.vocab_size = 50;
  m.hidden_size = 24;
  m.intermediate_size = 40;
  m.num_layers = 5;
  m.num_heads = 4;
  m.num_kv_heads = 2;
  m.head_dim = 6;
  m.max_position_embeddings = 64;
  m.tie_word_embeddings = tied;
  m.q_bias = m.k_bias = m.v_bias = biases;
  m.rope_inv_freq = {1.0f, 0.1f, 0.01f};
  return m;
}

struct TestTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// All tensors of the model, values in +-0.1 by a fixed seed.
inline std::vector<TestTensor> RandomTensors(const ModelDescription& m) {
  std::mt19937 random(7);
  std::vector<TestTensor> tensors;
  const auto add = [&](std::string name, std::vector<int64_t> shape) {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    std::vector<float> values(n);
    for (float& v : values) {
      v = static_cast<float>(random() % 2001) * 1e-4f - 0.1f;
    }
    tensors.push_back({std::move(name), std::move(shape), std::move(values)});
  };
  add("model.embed_tokens.weight", {m.vocab_size, m.hidden_size});
  if (!m.tie_word_embeddings) {
    add("lm_head.weight", {m.vocab_size, m.hidden_size});
  }
  add("model.norm.weight", {m.hidden_size});
  for (int layer = 0; layer < m.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    for (const LinearShape& l : BlockLinears(m)) {
      add(prefix + l.name + ".weight", {l.out_features, l.in_features});
      if (l.bias) add(prefix + l.name + ".bias", {l.out_features});
    }
    add(prefix + "input_layernorm.weight", {m.hidden_size});
    add(prefix + "post_attention_layernorm.weight", {m.hidden_size});
  }
  return tensors;
}

inline void WriteTestModel(const std::string& path,
                           const std::vector<TestTensor>& tensors) {
  std::vector<TensorToWrite> out;
  for (const TestTensor& t : tensors) {
    out.push_back({t.name,
                   TensorDtype::kF32,
                   t.shape,
                   {reinterpret_cast<const uint8_t*>(t.values.data()),
                    t.values.size() * sizeof(float)}});
  }
  ASSERT_TRUE(WriteSafetensors(path, out, {}).ok());
}

}  // namespace qlora::trainer
