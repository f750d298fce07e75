// One decoder block: x + attention(norm(x)), then + mlp(norm(.)), forward and
// backward, composed of the ops. All buffers are given.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "common/spec/memory_plan.h"
#include "worker/trainer/model/parameters.h"
#include "worker/trainer/model/weights.h"
#include "worker/trainer/ops/attention.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/rows.h"

namespace qlora::trainer {

// What a forward leaves for the backward; T rows each. "c" is the compute type.
struct BlockState {
  float* x = nullptr;      // float32 [T, hidden], the block's input
  float* x_mid = nullptr;  // float32 [T, hidden], after attention
  float* input_rstd = nullptr;
  float* mid_rstd = nullptr;
  void* q = nullptr;          // c, rotated
  void* k = nullptr;          // c, rotated
  void* v = nullptr;          // c
  float* lse = nullptr;       // [heads, T]; null: no backward follows
  void* attention = nullptr;  // c [T, q]
  void* gate = nullptr;       // c [T, intermediate]
  void* up = nullptr;         // c
  std::array<void*, kBlockLinears> xa{};  // c [T, rank]
};

// Shared by all blocks.
struct BlockScratch {
  void* normed = nullptr;   // c [T, hidden]
  void* dnormed = nullptr;  // c [T, hidden]
  void* dy = nullptr;       // bfloat16 only: [T, hidden]
  // c [T, max(intermediate, 2 q + 2 kv)]: the activation, or the gradients of
  // attention's output, q, k and v.
  void* wide = nullptr;
  void* attention = nullptr;
  LinearScratch linear;
};

struct BlockContext {
  AttentionShape shape;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  float norm_eps = 0;
  // Of the MLP's gate.
  kernels::Activation activation = kernels::Activation::kSilu;
  Dtype dtype = Dtype::kFloat32;
  RotaryTable rotary;
  BlockScratch scratch;
};

struct BlockArgs {
  const float* input_norm = nullptr;
  const float* post_attention_norm = nullptr;
  std::array<LinearWeight, kBlockLinears> linears;
  std::array<LoraWeights, kBlockLinears> lora;
  std::span<const int32_t> positions;
  std::span<const int32_t> offsets;
  // Decoding: k and v of the state begin with this many earlier rows.
  int64_t past = 0;
  BlockState state;

  // Method full; null otherwise.
  float* dinput_norm = nullptr;
  float* dpost_attention_norm = nullptr;
  std::array<float*, kBlockLinears> dweight{};
  std::array<float*, kBlockLinears> dbias{};
};

// out: float32 [T, hidden]; may not be state.x or state.x_mid.
void BlockForward(const BlockContext& context, const BlockArgs& args,
                  const View& out);

// Fills the state again where `memory` let other layers use its buffers; the
// same bits as the forward.
void BlockRecompute(const BlockContext& context, const BlockArgs& args,
                    LayerMemory memory);

// dx: the gradient of `out`, becomes that of the input if `reach` is kInput,
// else is left in between. Destroys gate and up of the state.
void BlockBackward(const BlockContext& context, const BlockArgs& args,
                   Reach reach, const View& dx);

}  // namespace qlora::trainer
