// The ops that only move memory, beside LibTorch's own, float32 and much larger
// than the caches.
#include <functional>
#include <string>
#include <vector>

#include "ATen/ATen.h"
#include "absl/strings/str_cat.h"
#include "bench/huge_pages.h"
#include "bench/kernels/bench.h"
#include "common/base/status_macros.h"

namespace qlora::bench {
namespace {

using kernels::View;

constexpr int64_t kRows = 8192;
constexpr int64_t kColumns = 4096;
constexpr double kElements = double{kRows} * kColumns;

View Wrap(const at::Tensor& t) {
  return {t.data_ptr(), kernels::Dtype::kFloat32, t.size(0), t.size(1),
          t.stride(0)};
}

at::Tensor Random() { return InHugePages(at::randn({kRows, kColumns})); }

// Where the first run of each leaves what it writes.
struct Output {
  const char* name;
  const at::Tensor& ours;
  const at::Tensor& peers;
};

struct Contest {
  std::string name;
  // Float32 values that have to be read, and those that have to be written.
  double values;
  std::function<void()> ours;
  std::function<void()> peers;
  std::vector<Output> outputs;
};

absl::Status Compete(const Contest& contest, KernelBench* bench) {
  contest.ours();
  contest.peers();
  for (const Output& output : contest.outputs) {
    RETURN_IF_ERROR(CheckNear(absl::StrCat(contest.name, "'s ", output.name),
                              output.ours, output.peers, 1e-5));
  }
  return bench->Time({.name = contest.name, .bytes = 4 * contest.values},
                     Timed(contest.ours), Timed(contest.peers));
}

absl::Status BenchRmsNorm(KernelBench* bench) {
  const at::Tensor x = Random(), weight = at::randn({kColumns});
  const at::Tensor rstd = at::empty({kRows});
  const at::Tensor out = InHugePages(x);
  // The peer keeps its own to itself.
  const at::Tensor their_rstd = (x.square().mean(1) + 1e-5).rsqrt();
  at::Tensor theirs;
  const auto ours = [&] {
    bench->backend().Run(bench->launch(),
                         kernels::RmsNorm{.x = Wrap(x),
                                          .weight = weight.data_ptr<float>(),
                                          .eps = 1e-5f,
                                          .out = Wrap(out),
                                          .rstd = rstd.data_ptr<float>()});
  };
  const auto peers = [&] {
    theirs = at::rms_norm(x, {kColumns}, weight, 1e-5);
  };
  return Compete({"rms_norm",
                  2 * kElements,
                  ours,
                  peers,
                  {{"out", out, theirs}, {"rstd", rstd, their_rstd}}},
                 bench);
}

absl::Status BenchGatedActivation(KernelBench* bench) {
  const at::Tensor gate = Random(), up = Random();
  const at::Tensor out = InHugePages(gate);
  at::Tensor theirs = at::empty_like(gate);
  const auto ours = [&] {
    bench->backend().Run(bench->launch(), kernels::GatedActivation{
                                              kernels::Activation::kSilu,
                                              Wrap(gate), Wrap(up), Wrap(out)});
  };
  const auto peers = [&] {
    at::silu_out(theirs, gate);
    theirs.mul_(up);
  };
  return Compete(
      {"gated_activation", 3 * kElements, ours, peers, {{"out", out, theirs}}},
      bench);
}

absl::Status BenchRotary(KernelBench* bench) {
  constexpr int kDim = 128;
  constexpr int64_t kPositions = 2048;
  const at::Tensor start = Random();
  const at::Tensor x = InHugePages(start);
  at::Tensor theirs;
  const at::Tensor angle = at::randn({kPositions, kDim / 2});
  const at::Tensor cos = angle.cos(), sin = angle.sin();
  const at::Tensor position =
      at::arange(kRows, at::kInt).remainder(kPositions).to(at::kInt);
  // In place: forth and back by turns, so that the values stay in range.
  bool inverse = false;
  const auto ours = [&] {
    bench->backend().Run(bench->launch(),
                         kernels::Rotary{.x = Wrap(x),
                                         .heads = kColumns / kDim,
                                         .dim = kDim,
                                         .rotary_dim = kDim,
                                         .cos = cos.data_ptr<float>(),
                                         .sin = sin.data_ptr<float>(),
                                         .positions = kPositions,
                                         .position = position.data_ptr<int>(),
                                         .inverse = inverse});
    inverse = !inverse;
  };
  // As transformers: x * cos + rotate_half(x) * sin.
  const auto places = [&](const at::Tensor& table) {
    return at::cat({table, table}, 1).index_select(0, position).unsqueeze(1);
  };
  const at::Tensor wide_cos = places(cos), wide_sin = places(sin);
  const at::Tensor heads = start.view({kRows, -1, kDim});
  const auto peers = [&] {
    const at::Tensor turned =
        at::cat({-heads.slice(2, kDim / 2), heads.slice(2, 0, kDim / 2)}, 2);
    theirs = (heads * wide_cos + turned * wide_sin).view({kRows, kColumns});
  };
  return Compete({"rotary", 2 * kElements, ours, peers, {{"x", x, theirs}}},
                 bench);
}

// The state of one trainer.
struct Moments {
  at::Tensor param, grad, exp_avg, exp_avg_sq;
};

absl::Status BenchAdamW(KernelBench* bench) {
  const at::Tensor param = Random(), grad = Random();
  const at::Tensor zeros = at::zeros_like(param);
  const Moments a = {InHugePages(param), InHugePages(grad), InHugePages(zeros),
                     InHugePages(zeros)};
  const Moments b = {param.clone(), grad.clone(), zeros, zeros.clone()};
  const at::Tensor step = at::ones({1});
  const auto ours = [&] {
    kernels::AdamW op;
    op.n = static_cast<int64_t>(kElements);
    op.param = a.param.data_ptr<float>();
    op.grad = a.grad.data_ptr<float>();
    op.moments.exp_avg = a.exp_avg.data_ptr<float>();
    op.moments.exp_avg_sq = a.exp_avg_sq.data_ptr<float>();
    op.learning_rate = 1e-3;
    op.weight_decay = 0.01;
    bench->backend().Run(bench->launch(), op);
  };
  const auto peers = [&] {
    at::_fused_adamw_({b.param}, {b.grad}, {b.exp_avg}, {b.exp_avg_sq}, {},
                      {step}, 1e-3, 0.9, 0.999, 0.01, 1e-8, false, false);
    b.grad.zero_();
  };
  return Compete({"adamw",
                  8 * kElements,
                  ours,
                  peers,
                  {{"param", a.param, b.param},
                   {"grad", a.grad, b.grad},
                   {"exp_avg", a.exp_avg, b.exp_avg},
                   {"exp_avg_sq", a.exp_avg_sq, b.exp_avg_sq}}},
                 bench);
}

}  // namespace

absl::Status BenchRowOps(KernelBench* bench) {
  const std::pair<const char*, absl::Status (*)(KernelBench*)> kAll[] = {
      {"rms_norm", BenchRmsNorm},
      {"gated_activation", BenchGatedActivation},
      {"rotary", BenchRotary},
      {"adamw", BenchAdamW}};
  for (const auto& [name, run] : kAll) {
    if (bench->Wants(name)) RETURN_IF_ERROR(run(bench));
  }
  return absl::OkStatus();
}

}  // namespace qlora::bench
