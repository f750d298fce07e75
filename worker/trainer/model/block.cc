#include "worker/trainer/model/block.h"

namespace qlora::trainer {
namespace {

// A block's buffers as matrices.
struct Views {
  Views(const BlockContext& c, const BlockArgs& a) {
    const auto rows = static_cast<int64_t>(a.positions.size());
    const int64_t q_size = int64_t{c.shape.heads} * c.shape.dim;
    const int64_t kv_size = int64_t{c.shape.kv_heads} * c.shape.dim;
    const auto compute = [&](void* data, int64_t columns) {
      return MakeView(data, c.dtype, rows, columns);
    };
    x = FloatView(a.state.x, rows, c.hidden);
    x_mid = FloatView(a.state.x_mid, rows, c.hidden);
    normed = compute(c.scratch.normed, c.hidden);
    dnormed = compute(c.scratch.dnormed, c.hidden);
    q = compute(a.state.q, q_size);
    all_k = MakeView(a.state.k, c.dtype, a.past + rows, kv_size);
    all_v = MakeView(a.state.v, c.dtype, a.past + rows, kv_size);
    k = all_k.Rows(a.past, rows);
    v = all_v.Rows(a.past, rows);
    attention = compute(a.state.attention, q_size);
    gate = compute(a.state.gate, c.intermediate);
    up = compute(a.state.up, c.intermediate);
    act = compute(c.scratch.wide, c.intermediate);
    dattention = compute(c.scratch.wide, q_size);
    dq = After(dattention, q_size);
    dk = After(dq, kv_size);
    dv = After(dk, kv_size);
  }

  // A contiguous matrix that begins where `view` ends.
  static View After(const View& view, int64_t columns) {
    return MakeView(view.Rows(view.rows, 0).data, view.dtype, view.rows,
                    columns);
  }

  View x, x_mid, normed, dnormed, q, k, v, all_k, all_v, attention, gate, up,
      act, dattention, dq, dk, dv;
};

LinearCall Call(const BlockContext& c, const BlockArgs& a, BlockLinear i) {
  return {a.linears[i], a.lora[i], c.scratch.linear};
}

void Apply(const BlockContext& c, const BlockArgs& a, BlockLinear i,
           const View& x, const View& y, bool add) {
  const LinearCall call = Call(c, a, i);
  AdapterInputProduct(call, x, a.state.xa[i]);
  LinearProduct(call, x, y, add, a.state.xa[i]);
}

AttentionArgs MakeAttention(const BlockContext& c, const BlockArgs& a,
                            const Views& v) {
  return {.shape = c.shape,
          .offsets = a.offsets,
          .past = a.past,
          .q = v.q,
          .k = v.all_k,
          .v = v.all_v,
          .out = v.attention,
          .lse = a.state.lse,
          .scratch = c.scratch.attention};
}

// The gradient of the residual stream in the compute type.
View OutputGrad(const BlockContext& c, const View& dx) {
  if (c.dtype == Dtype::kFloat32) return dx;
  const View dy = MakeView(c.scratch.dy, c.dtype, dx.rows, dx.columns);
  Convert(dx, dy);
  return dy;
}

// The gradients that a linear's weights get, given its whole input.
void WeightGrads(const BlockContext& c, const BlockArgs& a, BlockLinear i,
                 const View& x, const View& dy) {
  AdapterInputGrad(Call(c, a, i), x);
  if (a.dweight[i] != nullptr) {
    LinearWeightGrad(Call(c, a, i), x, dy, a.dweight[i], a.dbias[i]);
  }
}

void Backward(const BlockContext& c, const BlockArgs& a, BlockLinear i,
              const View& x, const View& dy, const View& dx, bool add) {
  const LinearCall call = Call(c, a, i);
  AdapterOutputGrad(call, a.state.xa[i], dy);
  WeightGrads(c, a, i, x, dy);
  if (dx.data != nullptr) LinearInputGrad(call, dy, dx, add);
}

// Whether the gradient has to pass `stage` on its way down.
bool GoesBelow(Reach reach, Reach stage) { return reach < stage; }

// Returns with the gradients of gate and up in their buffers, if needed.
void MlpBackward(const BlockContext& c, const BlockArgs& a, const Views& v,
                 Reach reach, const View& dx) {
  const View dy = OutputGrad(c, dx);
  const LinearCall down = Call(c, a, kDown);
  AdapterOutputGrad(down, a.state.xa[kDown], dy);
  if (!GoesBelow(reach, Reach::kDown)) {
    GatedActivation(c.activation, v.gate, v.up, v.act);
    WeightGrads(c, a, kDown, v.act, dy);
    return;
  }
  LinearInputGrad(down, dy, v.act, false);
  GatedActivationBackward(c.activation, v.gate, v.up, v.act);
  WeightGrads(c, a, kDown, v.act, dy);

  RmsNorm(v.x_mid, a.post_attention_norm, c.norm_eps, v.normed,
          a.state.mid_rstd);
  const bool below = GoesBelow(reach, Reach::kGateUp);
  const View dnormed = below ? v.dnormed : View{};
  Backward(c, a, kGate, v.normed, v.gate, dnormed, false);
  Backward(c, a, kUp, v.normed, v.up, dnormed, true);
  if (!below) return;
  RmsNormBackward(v.x_mid, a.post_attention_norm, a.state.mid_rstd, v.dnormed,
                  dx, a.dpost_attention_norm);
}

void AttentionPartBackward(const BlockContext& c, const BlockArgs& a,
                           const Views& v, Reach reach, const View& dx) {
  const View dy = OutputGrad(c, dx);
  const bool past_o = GoesBelow(reach, Reach::kO);
  Backward(c, a, kO, v.attention, dy, past_o ? v.dattention : View{}, false);
  if (!past_o) return;
  AttentionBackward(MakeAttention(c, a, v), v.dattention, v.dq, v.dk, v.dv);
  Rotate(c.rotary, a.positions, true, v.dq);
  Rotate(c.rotary, a.positions, true, v.dk);

  RmsNorm(v.x, a.input_norm, c.norm_eps, v.normed, a.state.input_rstd);
  const bool below = GoesBelow(reach, Reach::kQkv);
  const View dnormed = below ? v.dnormed : View{};
  Backward(c, a, kQ, v.normed, v.dq, dnormed, false);
  Backward(c, a, kK, v.normed, v.dk, dnormed, true);
  Backward(c, a, kV, v.normed, v.dv, dnormed, true);
  if (!below) return;
  RmsNormBackward(v.x, a.input_norm, a.state.input_rstd, v.dnormed, dx,
                  a.dinput_norm);
}

// Fills the state up to x_mid out of x.
void AttentionPart(const BlockContext& c, const BlockArgs& a, const Views& v) {
  RmsNorm(v.x, a.input_norm, c.norm_eps, v.normed, a.state.input_rstd);
  Apply(c, a, kQ, v.normed, v.q, false);
  Apply(c, a, kK, v.normed, v.k, false);
  Apply(c, a, kV, v.normed, v.v, false);
  Rotate(c.rotary, a.positions, false, v.q);
  Rotate(c.rotary, a.positions, false, v.k);
  Attention(MakeAttention(c, a, v));
  Convert(v.x, v.x_mid);
  Apply(c, a, kO, v.attention, v.x_mid, true);
}

// Fills gate and up out of x_mid.
void GateUp(const BlockContext& c, const BlockArgs& a, const Views& v) {
  RmsNorm(v.x_mid, a.post_attention_norm, c.norm_eps, v.normed,
          a.state.mid_rstd);
  Apply(c, a, kGate, v.normed, v.gate, false);
  Apply(c, a, kUp, v.normed, v.up, false);
}

// Fills the activation, and the adapter's product of it.
void Activation(const BlockContext& c, const BlockArgs& a, const Views& v) {
  GatedActivation(c.activation, v.gate, v.up, v.act);
  AdapterInputProduct(Call(c, a, kDown), v.act, a.state.xa[kDown]);
}

}  // namespace

void BlockRecompute(const BlockContext& c, const BlockArgs& a,
                    LayerMemory memory) {
  if (memory == LayerMemory::kKeep) return;
  const Views v(c, a);
  if (memory == LayerMemory::kRecompute) AttentionPart(c, a, v);
  GateUp(c, a, v);
  const bool whole = memory == LayerMemory::kRecompute;
  if (whole && a.lora[kDown].rank > 0) Activation(c, a, v);
}

void BlockForward(const BlockContext& c, const BlockArgs& a, const View& out) {
  const Views v(c, a);
  AttentionPart(c, a, v);
  GateUp(c, a, v);
  Activation(c, a, v);
  Convert(v.x_mid, out);
  LinearProduct(Call(c, a, kDown), v.act, out, true, a.state.xa[kDown]);
}

void BlockBackward(const BlockContext& c, const BlockArgs& a, Reach reach,
                   const View& dx) {
  const Views v(c, a);
  MlpBackward(c, a, v, reach, dx);
  if (GoesBelow(reach, Reach::kGateUp)) {
    AttentionPartBackward(c, a, v, reach, dx);
  }
}

}  // namespace qlora::trainer
