// Attention and the head with its loss, forward and backward, beside LibTorch's
// own operations.
#include <string>
#include <vector>

#include "ATen/ATen.h"
#include "ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h"
#include "ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h"
#include "absl/strings/str_cat.h"
#include "bench/huge_pages.h"
#include "bench/kernels/bench.h"
#include "common/base/status_macros.h"
#include "worker/trainer/ops/gemm.h"

namespace qlora::bench {
namespace {

using kernels::View;

View Wrap(const at::Tensor& t) {
  const auto dtype = t.scalar_type() == at::kFloat ? kernels::Dtype::kFloat32
                                                   : kernels::Dtype::kBfloat16;
  return {t.data_ptr(), dtype, t.size(0), t.size(1), t.stride(0)};
}

// The launch with as much workspace as `op` wants, which lives in `room`.
template <typename Op>
kernels::Launch WithRoom(const KernelBench& bench, const Op& op,
                         at::Tensor* room) {
  kernels::Launch launch = bench.launch();
  launch.workspace_bytes = bench.backend().WorkspaceBytes(op, launch.threads);
  *room = InHugePages(at::empty({launch.workspace_bytes}, at::kByte));
  launch.workspace = room->data_ptr();
  return launch;
}

double Share(at::ScalarType type) { return type == at::kFloat ? 1e-4 : 5e-2; }

constexpr int64_t kDocuments = 4, kLength = 512;
constexpr int kHeads = 9, kKvHeads = 3, kDim = 64;

struct AttentionInputs {
  explicit AttentionInputs(at::ScalarType type) {
    const int64_t rows = kDocuments * kLength;
    q = at::randn({rows, kHeads * kDim}).to(type);
    k = at::randn({rows, kKvHeads * kDim}).to(type);
    v = at::randn({rows, kKvHeads * kDim}).to(type);
    dout = at::randn({rows, kHeads * kDim}).to(type);
  }
  at::Tensor q, k, v, dout;
};

struct AttentionOutputs {
  at::Tensor out, lse, dq, dk, dv;
};

// [documents, heads, length, dim] as [rows, heads * dim].
at::Tensor Join(const at::Tensor& x) {
  return x.transpose(1, 2).reshape({kDocuments * kLength, -1});
}

// What LibTorch's operation makes of t, out and lse in its order; it wants as
// many key-value heads as query heads; the gradients of the copies are added
// up.
void PeerAttention(const AttentionInputs& t, AttentionOutputs* theirs) {
  const auto split = [](const at::Tensor& x, int heads) {
    return x.view({kDocuments, kLength, heads, kDim}).transpose(1, 2);
  };
  const auto repeat = [&](const at::Tensor& x) {
    return split(x, kKvHeads).repeat_interleave(kHeads / kKvHeads, 1);
  };
  const auto add_up = [&](const at::Tensor& x) {
    return Join(x.view({kDocuments, kKvHeads, -1, kLength, kDim}).sum(2));
  };
  const at::Tensor q = split(t.q, kHeads), k = repeat(t.k), v = repeat(t.v);
  const auto [out, lse] =
      at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, true);
  const auto [gq, gk, gv] =
      at::_scaled_dot_product_flash_attention_for_cpu_backward(
          split(t.dout, kHeads), q, k, v, out, lse, 0.0, true);
  *theirs = {out, lse, Join(gq), add_up(gk.contiguous()),
             add_up(gv.contiguous())};
}

absl::Status CheckAttention(const std::string& name,
                            const AttentionOutputs& ours,
                            const AttentionOutputs& theirs, double share) {
  // Theirs is [documents, heads, length].
  const at::Tensor lse = theirs.lse.transpose(0, 1).reshape({kHeads, -1});
  RETURN_IF_ERROR(
      CheckNear(name + "'s out", ours.out, Join(theirs.out), share));
  RETURN_IF_ERROR(CheckNear(name + "'s lse", ours.lse, lse, share));
  RETURN_IF_ERROR(CheckNear(name + "'s dq", ours.dq, theirs.dq, share));
  RETURN_IF_ERROR(CheckNear(name + "'s dk", ours.dk, theirs.dk, share));
  return CheckNear(name + "'s dv", ours.dv, theirs.dv, share);
}

absl::Status BenchAttention(const std::string& name, at::ScalarType type,
                            KernelBench* bench) {
  const AttentionInputs t(type);
  const AttentionOutputs mine = {
      InHugePages(t.q), at::empty({kHeads, t.q.size(0)}), InHugePages(t.q),
      InHugePages(t.k), InHugePages(t.v)};
  std::vector<int32_t> offsets;
  for (int64_t d = 0; d <= kDocuments; ++d) {
    offsets.push_back(static_cast<int32_t>(d * kLength));
  }
  const kernels::AttentionBackward op = {
      .forward = {.heads = kHeads,
                  .kv_heads = kKvHeads,
                  .dim = kDim,
                  .offsets = offsets.data(),
                  .documents = kDocuments,
                  .q = Wrap(t.q),
                  .k = Wrap(t.k),
                  .v = Wrap(t.v),
                  .out = Wrap(mine.out),
                  .lse = mine.lse.data_ptr<float>()},
      .dout = Wrap(t.dout),
      .dq = Wrap(mine.dq),
      .dk = Wrap(mine.dk),
      .dv = Wrap(mine.dv)};
  at::Tensor room;
  const kernels::Launch launch = WithRoom(*bench, op, &room);
  const auto ours = [&] {
    bench->backend().Run(launch, op.forward);
    bench->backend().Run(launch, op);
  };
  AttentionOutputs theirs;
  const auto peers = [&] { PeerAttention(t, &theirs); };
  ours();
  peers();
  RETURN_IF_ERROR(CheckAttention(name, mine, theirs, Share(type)));
  // Two products forward and five backward over half of a square.
  const double pairs = double{kDocuments} * kHeads * kLength * kLength / 2;
  return bench->Time(
      {.name = name, .flops = 7 * 2 * pairs * kDim, .dtype = Wrap(t.q).dtype},
      Timed(ours), Timed(peers));
}

constexpr int64_t kTokens = 2048, kVocab = 49152, kHidden = 576;

absl::Status BenchHeadLoss(const std::string& name, at::ScalarType type,
                           KernelBench* bench) {
  const at::Tensor x = at::randn({kTokens, kHidden}).to(type);
  const at::Tensor weight =
      InHugePages((at::randn({kVocab, kHidden}) * 0.05).to(type));
  const at::Tensor targets = at::randint(kVocab, {kTokens}, at::kInt);
  const at::Tensor dx = InHugePages(x),
                   loss = at::empty({kTokens}, at::kDouble);
  const kernels::HeadLoss op = {.x = Wrap(x),
                                .weight = Wrap(weight),
                                .targets = targets.data_ptr<int>(),
                                .gemm = trainer::KernelGemm,
                                .loss = loss.data_ptr<double>(),
                                .dx = Wrap(dx)};
  at::Tensor room;
  const kernels::Launch launch = WithRoom(*bench, op, &room);
  const auto ours = [&] { bench->backend().Run(launch, op); };
  const at::Tensor index = targets.to(at::kLong);
  at::Tensor gradient;
  // The same work: the loss and the gradient of x; the head is frozen.
  const auto peers = [&] {
    const at::Tensor hidden = x.detach().requires_grad_();
    at::cross_entropy_loss(at::linear(hidden, weight), index, {},
                           at::Reduction::Sum)
        .backward();
    gradient = hidden.grad();
  };
  ours();
  peers();
  const at::Tensor their_loss = at::cross_entropy_loss(
      at::linear(x, weight), index, {}, at::Reduction::None);
  RETURN_IF_ERROR(CheckNear(name + "'s loss", loss, their_loss, Share(type)));
  RETURN_IF_ERROR(CheckNear(name + "'s dx", dx, gradient, Share(type)));
  return bench->Time({.name = name,
                      .flops = 4.0 * kTokens * kVocab * kHidden,
                      .dtype = op.x.dtype},
                     Timed(ours), Timed(peers));
}

}  // namespace

absl::Status BenchAttentionOps(KernelBench* bench) {
  using Benchmark =
      absl::Status (*)(const std::string&, at::ScalarType, KernelBench*);
  const struct {
    const char* name;
    Benchmark run;
    at::ScalarType type;
  } rows[] = {{"attention_f32", BenchAttention, at::kFloat},
              {"attention_bf16", BenchAttention, at::kBFloat16},
              {"head_loss_f32", BenchHeadLoss, at::kFloat},
              {"head_loss_bf16", BenchHeadLoss, at::kBFloat16}};
  for (const auto& row : rows) {
    if (!bench->Wants(row.name)) continue;
    RETURN_IF_ERROR(row.run(row.name, row.type, bench));
  }
  return absl::OkStatus();
}

}  // namespace qlora::bench
