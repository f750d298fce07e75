// What is trainable, where it lies, and its fresh values.
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "worker/trainer/model/model.h"
#include "worker/trainer/model/parameters.h"

namespace qlora::trainer {
namespace {

// Counter-based random numbers: Philox 4x32 with ten rounds (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3").
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter,
                               std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// FNV-1a.
uint64_t HashName(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) {
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }
  return hash;
}

// f(bits) gives value i of a tensor.
template <typename F>
void FillRandom(uint64_t seed, std::string_view name, std::span<float> out,
                F f) {
  const uint64_t hash = HashName(name);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = f(Philox(
        {static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32),
         static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32)},
        {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}));
  }
}

// In (0, 1).
double Unit(uint32_t bits) { return (bits + 0.5) * 0x1p-32; }

class LayoutBuilder {
 public:
  int64_t Add(std::string name, std::vector<int64_t> shape) {
    int64_t size = 1;
    for (const int64_t d : shape) size *= d;
    const int64_t offset = layout_.total;
    layout_.tensors.push_back(
        {std::move(name), std::move(shape), offset, size});
    layout_.total += size;
    return offset;
  }
  TrainableLayout Take() { return std::move(layout_); }

 private:
  TrainableLayout layout_;
};

void AddBlock(const ModelDescription& model, const LoraOptions& lora,
              const std::string& prefix, LayoutBuilder& builder,
              BlockPlaces& places) {
  const std::vector<LinearShape> linears = BlockLinears(model);
  for (size_t i = 0; i < linears.size(); ++i) {
    const std::string module = prefix + linears[i].name;
    if (std::ranges::find(lora.modules, module) == lora.modules.end()) continue;
    places.linears[i].lora_a = builder.Add(module + ".lora_A.weight",
                                           {lora.rank, linears[i].in_features});
    places.linears[i].lora_b = builder.Add(
        module + ".lora_B.weight", {linears[i].out_features, lora.rank});
  }
}

void AddFullBlock(const ModelDescription& model, const std::string& prefix,
                  LayoutBuilder& builder, BlockPlaces& places) {
  const std::vector<LinearShape> linears = BlockLinears(model);
  places.input_norm =
      builder.Add(prefix + "input_layernorm.weight", {model.hidden_size});
  for (size_t i = 0; i < linears.size(); ++i) {
    const std::string module = prefix + linears[i].name;
    places.linears[i].weight = builder.Add(
        module + ".weight", {linears[i].out_features, linears[i].in_features});
    if (linears[i].bias) {
      places.linears[i].bias =
          builder.Add(module + ".bias", {linears[i].out_features});
    }
  }
  places.post_attention_norm = builder.Add(
      prefix + "post_attention_layernorm.weight", {model.hidden_size});
}

}  // namespace

const TrainableTensor* TrainableLayout::Find(std::string_view name) const {
  const auto it = std::ranges::find(tensors, name, &TrainableTensor::name);
  return it == tensors.end() ? nullptr : &*it;
}

Parameters MakeParameters(const ModelDescription& model, Method method,
                          const LoraOptions& lora) {
  Parameters parameters;
  parameters.blocks.resize(model.num_layers);
  LayoutBuilder builder;
  const bool full = method == Method::kFull;
  const std::vector<int64_t> table = {model.vocab_size, model.hidden_size};
  if (full) {
    parameters.embedding = builder.Add("model.embed_tokens.weight", table);
  }
  for (int layer = 0; layer < model.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    BlockPlaces& places = parameters.blocks[layer];
    if (full) {
      AddFullBlock(model, prefix, builder, places);
    } else {
      AddBlock(model, lora, prefix, builder, places);
    }
  }
  if (full) {
    parameters.final_norm =
        builder.Add("model.norm.weight", {model.hidden_size});
    parameters.head = model.tie_word_embeddings
                          ? parameters.embedding
                          : builder.Add("lm_head.weight", table);
  }
  parameters.layout = builder.Take();
  return parameters;
}

std::vector<Reach> BackwardReach(const Parameters& parameters) {
  constexpr std::array<Reach, kBlockLinears> kOf = {
      Reach::kQkv,    Reach::kQkv,    Reach::kQkv, Reach::kO,
      Reach::kGateUp, Reach::kGateUp, Reach::kDown};
  std::vector<Reach> reach;
  bool below = parameters.embedding >= 0;
  for (const BlockPlaces& block : parameters.blocks) {
    Reach lowest = Reach::kNothing;
    for (int i = kBlockLinears - 1; i >= 0; --i) {
      if (block.linears[i].lora_a >= 0) lowest = kOf[i];
    }
    reach.push_back(below ? Reach::kInput : lowest);
    below = below || lowest != Reach::kNothing;
  }
  return reach;
}

void InitializeTrainable(const ModelDescription& description,
                         const TrainableLayout& layout, uint64_t seed,
                         std::span<float> params) {
  for (const TrainableTensor& tensor : layout.tensors) {
    const std::span<float> out = params.subspan(tensor.offset, tensor.size);
    if (absl::EndsWith(tensor.name, ".lora_A.weight")) {
      const double bound =
          1 / std::sqrt(static_cast<double>(tensor.shape.back()));
      FillRandom(seed, tensor.name, out, [&](const auto& bits) {
        return static_cast<float>((2 * Unit(bits[0]) - 1) * bound);
      });
    } else if (absl::EndsWith(tensor.name, "norm.weight")) {
      std::ranges::fill(out, 1.0f);
    } else if (absl::EndsWith(tensor.name, ".lora_B.weight") ||
               absl::EndsWith(tensor.name, ".bias")) {
      std::ranges::fill(out, 0.0f);
    } else {
      FillRandom(seed, tensor.name, out, [&](const auto& bits) {
        const double radius = std::sqrt(-2 * std::log(Unit(bits[0])));
        const double angle = 2 * std::numbers::pi * Unit(bits[1]);
        return static_cast<float>(description.initializer_range * radius *
                                  std::cos(angle));
      });
    }
  }
}

}  // namespace qlora::trainer
