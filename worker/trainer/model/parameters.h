// Where a model's trainable tensors lie, by role instead of by name.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "common/spec/model_description.h"
#include "worker/trainer/model/model.h"

namespace qlora::trainer {

// The linears of a block, in the order of BlockLinears.
enum BlockLinear { kQ, kK, kV, kO, kGate, kUp, kDown, kBlockLinears };

// Offsets in the flat buffer; -1: frozen or absent.
struct LinearPlaces {
  int64_t lora_a = -1;
  int64_t lora_b = -1;
  int64_t weight = -1;
  int64_t bias = -1;
};

struct BlockPlaces {
  int64_t input_norm = -1;
  int64_t post_attention_norm = -1;
  std::array<LinearPlaces, kBlockLinears> linears;
};

struct Parameters {
  TrainableLayout layout;
  int64_t embedding = -1;
  int64_t final_norm = -1;
  // The embedding's with tied embeddings.
  int64_t head = -1;
  std::vector<BlockPlaces> blocks;
};

Parameters MakeParameters(const ModelDescription& model, Method method,
                          const LoraOptions& lora);

// What a block's backward has to reach.
enum class Reach {
  // The gradient of the block's input.
  kInput,
  // The lowest adapter is in q, k or v; in o; in gate or up; in down.
  kQkv,
  kO,
  kGateUp,
  kDown,
  // Nothing is trainable here or below.
  kNothing,
};

// For each layer. Method full reaches every input.
std::vector<Reach> BackwardReach(const Parameters& parameters);

}  // namespace qlora::trainer
