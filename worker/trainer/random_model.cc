#include "worker/trainer/random_model.h"

#include <bit>
#include <cstdint>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/formats/safetensors.h"
#include "common/spec/model_description.h"

namespace qlora::trainer {
namespace {

constexpr uint16_t kOne = 0x3f80;

class RandomWeights {
 public:
  void Add(std::string name, std::vector<int64_t> shape) {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    std::vector<uint16_t>& values = storage_.emplace_back(n, kOne);
    if (shape.size() > 1) {
      for (uint16_t& v : values) v = Next();
    }
    tensors_.push_back(
        {std::move(name),
         TensorDtype::kBF16,
         std::move(shape),
         {reinterpret_cast<const uint8_t*>(values.data()), values.size() * 2}});
  }
  const std::vector<TensorToWrite>& tensors() const { return tensors_; }

 private:
  // A sum of four uniform values is nearly normal, and quick.
  uint16_t Next() {
    const uint64_t bits = random_();
    const auto sum =
        static_cast<float>((bits & 0xffff) + (bits >> 16 & 0xffff) +
                           (bits >> 32 & 0xffff) + (bits >> 48));
    const float value = (sum / 65536 - 2) * 0.02f * 1.7320508f;
    return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
  }

  std::mt19937_64 random_{1};
  std::vector<std::vector<uint16_t>> storage_;
  std::vector<TensorToWrite> tensors_;
};

}  // namespace

const std::string_view kLlama135M = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama",
  "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
  "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
  "max_position_embeddings": 2048, "rms_norm_eps": 1e-05,
  "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu",
  "attention_bias": false, "mlp_bias": false, "bos_token_id": 0,
  "eos_token_id": 0, "torch_dtype": "bfloat16"
})";

absl::Status WriteRandomModel(const std::string& directory,
                              std::string_view config) {
  ASSIGN_OR_RETURN(const ModelDescription m,
                   ParseModelConfig(std::string(config)));
  RandomWeights weights;
  const std::vector<int64_t> table = {m.vocab_size, m.hidden_size};
  weights.Add("model.embed_tokens.weight", table);
  if (!m.tie_word_embeddings) weights.Add("lm_head.weight", table);
  for (int layer = 0; layer < m.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    for (const LinearShape& l : BlockLinears(m)) {
      weights.Add(prefix + l.name + ".weight", {l.out_features, l.in_features});
    }
    weights.Add(prefix + "input_layernorm.weight", {m.hidden_size});
    weights.Add(prefix + "post_attention_layernorm.weight", {m.hidden_size});
  }
  weights.Add("model.norm.weight", {m.hidden_size});
  RETURN_IF_ERROR(WriteFileAtomically(directory + "/config.json", config));
  return WriteSafetensors(directory + "/model.safetensors", weights.tensors(),
                          {{"format", "pt"}})
      .status();
}

}  // namespace qlora::trainer
