#include "worker/trainer/model/workspace.h"

#include <algorithm>

#include "common/base/status_macros.h"

namespace qlora::trainer {

// Hands out aligned pieces; without memory it only counts.
class Workspace::Cutter {
 public:
  explicit Cutter(uint8_t* base) : base_(base) {}

  template <typename T>
  T* Take(int64_t count) {
    return static_cast<T*>(Bytes(count * static_cast<int64_t>(sizeof(T))));
  }
  void* Take(Dtype dtype, int64_t count) {
    return Bytes(count * ElementSize(dtype));
  }
  void* Bytes(int64_t bytes) {
    constexpr int64_t kAlign = AlignedBuffer::kAlignment;
    void* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + kAlign - 1) / kAlign * kAlign;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

namespace {

struct Sizes {
  explicit Sizes(const WorkspaceOptions& o)
      : tokens(o.max_tokens),
        hidden(o.model->hidden_size),
        inner(o.model->intermediate_size),
        q(o.model->q_size()),
        kv(o.model->kv_size()),
        heads(o.model->num_heads),
        vocab(o.model->vocab_size) {
    for (const LinearShape& l : BlockLinears(*o.model)) {
      weight = std::max(weight, l.in_features * l.out_features);
      widest = std::max({widest, l.in_features, l.out_features});
    }
    // Gradients of LoRA's matrices pass through it.
    if (o.dtype == Dtype::kBfloat16) {
      weight = std::max(weight, o.lora_rank * widest);
    }
  }
  int64_t tokens, hidden, inner, q, kv, heads, vocab;
  int64_t weight = 0, widest = 0;
};

template <typename Cutter>
void CutMlp(const WorkspaceOptions& o, const Sizes& s, Cutter& cut,
            BlockState& state) {
  state.gate = cut.Take(o.dtype, s.tokens * s.inner);
  state.up = cut.Take(o.dtype, s.tokens * s.inner);
}

// Everything but x, gate and up.
template <typename Cutter>
BlockState CutAttention(const WorkspaceOptions& o, const Sizes& s,
                        Cutter& cut) {
  BlockState state;
  const int64_t t = s.tokens;
  state.x_mid = cut.template Take<float>(t * s.hidden);
  state.input_rstd = cut.template Take<float>(t);
  state.mid_rstd = cut.template Take<float>(t);
  state.q = cut.Take(o.dtype, t * s.q);
  if (!o.decode) {
    state.k = cut.Take(o.dtype, t * s.kv);
    state.v = cut.Take(o.dtype, t * s.kv);
    state.lse = cut.template Take<float>(t * s.heads);
  }
  state.attention = cut.Take(o.dtype, t * s.q);
  for (void*& xa : state.xa) xa = cut.Take(o.dtype, t * o.lora_rank);
  return state;
}

// Fills the states of the layers; gives what evaluation and layers below
// `first` use.
template <typename Cutter>
BlockState CutStates(const WorkspaceOptions& o, const Sizes& s, Cutter& cut,
                     std::vector<BlockState>& states) {
  const auto layers = static_cast<int>(o.layers.size());
  const auto used = std::span(o.layers).subspan(std::min(o.first, layers));
  const auto any = [&](LayerMemory memory) {
    return std::ranges::find(used, memory) != used.end();
  };
  const bool whole = any(LayerMemory::kRecompute) || used.empty() || o.decode;
  BlockState shared;
  if (whole) shared = CutAttention(o, s, cut);
  if (whole || any(LayerMemory::kRecomputeMlp)) CutMlp(o, s, cut, shared);
  for (int l = o.first; l < layers && !o.decode; ++l) {
    BlockState& state = states[l];
    state = o.layers[l] == LayerMemory::kRecompute ? shared
                                                   : CutAttention(o, s, cut);
    if (o.layers[l] == LayerMemory::kKeep) {
      CutMlp(o, s, cut, state);
    } else {
      state.gate = shared.gate;
      state.up = shared.up;
    }
    state.x = cut.template Take<float>(s.tokens * s.hidden);
  }
  // Where no layer is recomputed whole, evaluation and the layers below `first`
  // (which run before any state is filled) can do with a layer's buffers.
  return whole ? shared : states.back();
}

template <typename Cutter>
BlockScratch CutScratch(const WorkspaceOptions& o, const Sizes& s,
                        Cutter& cut) {
  BlockScratch b;
  const bool narrow_type = o.dtype == Dtype::kBfloat16;
  b.normed = cut.Take(o.dtype, s.tokens * s.hidden);
  b.wide = cut.Take(o.dtype, s.tokens * std::max(s.inner, 2 * (s.q + s.kv)));
  b.linear.weight = cut.Take(o.dtype, s.weight);
  b.linear.narrow = cut.Take(o.dtype, s.tokens * o.lora_rank);
  if (narrow_type) {
    b.linear.lora = cut.Take(o.dtype, o.lora_rank * s.widest);
    b.linear.output = cut.Take(o.dtype, s.tokens * s.hidden);
  }
  if (o.dropout) b.linear.dropped = cut.Take(o.dtype, s.tokens * s.widest);
  if (!o.decode) {
    b.dnormed = cut.Take(o.dtype, s.tokens * s.hidden);
    if (narrow_type) b.dy = cut.Take(o.dtype, s.tokens * s.hidden);
  }
  const AttentionShape shape = {o.model->num_heads, o.model->num_kv_heads,
                                o.model->head_dim};
  b.attention =
      cut.Bytes(AttentionScratchBytes(shape, o.max_positions, o.threads));
  return b;
}

template <typename Cutter>
LossArgs CutLoss(const WorkspaceOptions& o, const Sizes& s,
                 const BlockScratch& block, Cutter& cut) {
  LossArgs loss;
  loss.dtype = o.dtype;
  loss.chunk = LossChunkTokens(*o.model, o.max_tokens);
  loss.normed = block.normed;
  loss.dnormed = block.dnormed;
  loss.rstd = cut.template Take<float>(s.tokens);
  if (o.decode) return loss;
  loss.losses = cut.template Take<double>(s.tokens);
  loss.scratch_bytes =
      LossScratchBytes(o.dtype, s.tokens, loss.chunk, s.vocab, s.hidden);
  loss.scratch = cut.Bytes(loss.scratch_bytes);
  return loss;
}

}  // namespace

void Workspace::Cut(const WorkspaceOptions& o, Cutter& cut) {
  const Sizes s(o);
  const auto layers = static_cast<int>(o.layers.size());
  states.assign(layers, {});
  shared = CutStates(o, s, cut, states);
  for (int l = 0; l < layers && o.decode; ++l) {
    states[l].k = cut.Take(o.dtype, o.max_positions * s.kv);
    states[l].v = cut.Take(o.dtype, o.max_positions * s.kv);
  }
  x_final = cut.Take<float>(s.tokens * s.hidden);
  dx = cut.Take<float>(s.tokens * s.hidden);
  const int half = o.model->head_dim / 2;
  rotary = {cut.Take<float>(o.max_positions * half),
            cut.Take<float>(o.max_positions * half), o.model->head_dim,
            o.max_positions};
  block = CutScratch(o, s, cut);
  loss = CutLoss(o, s, block, cut);
  if (o.decode) logits = cut.Take(o.dtype, s.vocab);
  weight_elements = s.weight;
  if (o.dropout) {
    row_keys = {cut.Take<uint64_t>(s.tokens), static_cast<size_t>(s.tokens)};
  }
}

int64_t Workspace::BytesOf(const WorkspaceOptions& options) {
  Workspace workspace;
  Cutter counter(nullptr);
  workspace.Cut(options, counter);
  return counter.used();
}

absl::StatusOr<Workspace> Workspace::Create(const WorkspaceOptions& options) {
  Workspace workspace;
  ASSIGN_OR_RETURN(workspace.memory_,
                   AlignedBuffer::Create(BytesOf(options), "the workspace"));
  Cutter cutter(workspace.memory_.bytes().data());
  workspace.Cut(options, cutter);
  FillRotaryTable(options.model->rope_inv_freq, options.max_positions,
                  const_cast<float*>(workspace.rotary.cos),
                  const_cast<float*>(workspace.rotary.sin));
  return workspace;
}

}  // namespace qlora::trainer
