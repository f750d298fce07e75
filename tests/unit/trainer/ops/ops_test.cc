// Every op's backward against autograd in float64, odd sizes included.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "worker/trainer/data/batch.h"
#include "worker/trainer/ops/attention.h"
#include "worker/trainer/ops/dropout.h"
#include "worker/trainer/ops/linear.h"
#include "worker/trainer/ops/loss.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/ops/rows.h"

namespace qlora::trainer {
namespace {

View Wrap(const at::Tensor& t) {
  return {t.data_ptr(), Dtype::kFloat32, t.size(0), t.size(1), t.stride(0)};
}

at::Tensor Oracle(const at::Tensor& t) {
  return t.to(at::kDouble).set_requires_grad(true);
}

void ExpectNear(const at::Tensor& actual, const at::Tensor& expected,
                const char* what) {
  const at::Tensor exact = expected.detach().to(at::kDouble);
  const double norm = exact.norm().item<double>();
  EXPECT_LE((actual.to(at::kDouble) - exact).norm().item<double>(),
            3e-6 * norm + 1e-6)
      << what;
}

std::vector<at::Tensor> Grads(const at::Tensor& y, const at::Tensor& dy,
                              const std::vector<at::Tensor>& inputs) {
  return torch::autograd::grad({y}, inputs, {dy.to(at::kDouble)});
}

class OpsTest : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(1); }
};

TEST_F(OpsTest, RmsNorm) {
  for (const auto& [rows, n] :
       std::vector<std::pair<int, int>>{{1, 1}, {3, 17}, {70, 64}, {33, 577}}) {
    const at::Tensor x = at::randn({rows, n}), w = at::randn({n}),
                     dy = at::randn({rows, n});
    const at::Tensor out = at::empty_like(x), rstd = at::empty({rows});
    RmsNorm(Wrap(x), w.data_ptr<float>(), 1e-5f, Wrap(out),
            rstd.data_ptr<float>());
    const at::Tensor x64 = Oracle(x), w64 = Oracle(w);
    const at::Tensor y =
        x64 * ((x64 * x64).mean(-1, true) + 1e-5).rsqrt() * w64;
    ExpectNear(out, y, "out");
    const auto grads = Grads(y, dy, {x64, w64});
    const at::Tensor dx = at::ones_like(x), dw = at::ones_like(w);
    RmsNormBackward(Wrap(x), w.data_ptr<float>(), rstd.data_ptr<float>(),
                    Wrap(dy), Wrap(dx), dw.data_ptr<float>());
    if (n > 1) ExpectNear(dx, grads[0] + 1, "dx");
    ExpectNear(dw, grads[1] + 1, "dw");
  }
}

TEST_F(OpsTest, EmbeddingAddsUpRepeatedTokens) {
  const at::Tensor table = at::randn({11, 37}), dx = at::randn({6, 37});
  const std::vector<int32_t> tokens = {3, 0, 3, 10, 3, 0};
  const at::Tensor out = at::empty({6, 37});
  Embedding(tokens, Wrap(table), Wrap(out));
  const at::Tensor index =
      at::tensor(at::ArrayRef<int32_t>(tokens)).to(at::kLong);
  EXPECT_TRUE(out.equal(table.index_select(0, index)));
  const at::Tensor grad = at::zeros_like(table);
  EmbeddingBackward(tokens, Wrap(dx), Wrap(grad));
  ExpectNear(grad, at::zeros_like(table).index_add(0, index, dx), "grad");
}

TEST_F(OpsTest, RotateTurnsPairsAndBack) {
  const std::vector<float> frequencies = {1.0f, 0.3f, 0.01f};
  std::vector<float> cos(50 * 3), sin(50 * 3);
  FillRotaryTable(frequencies, 50, cos.data(), sin.data());
  const RotaryTable table = {cos.data(), sin.data(), 6, 50};
  const at::Tensor x = at::randn({4, 12}), y = x.clone();
  const std::vector<int32_t> positions = {0, 1, 49, 7};
  Rotate(table, positions, false, Wrap(y));
  for (int r = 0; r < 4; ++r) {
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 3; ++i) {
        const double angle = positions[r] * double{frequencies[i]};
        const double a = x[r][h * 6 + i].item<double>();
        const double b = x[r][h * 6 + 3 + i].item<double>();
        EXPECT_NEAR(y[r][h * 6 + i].item<double>(),
                    a * std::cos(angle) - b * std::sin(angle), 3e-6);
        EXPECT_NEAR(y[r][h * 6 + 3 + i].item<double>(),
                    b * std::cos(angle) + a * std::sin(angle), 3e-6);
      }
    }
  }
  // The transpose of a rotation is its inverse.
  Rotate(table, positions, true, Wrap(y));
  ExpectNear(y, x, "back");
}

TEST_F(OpsTest, GatedActivation) {
  using kernels::Activation;
  const at::Tensor gate = at::randn({7, 45}) * 4, up = at::randn({7, 45}),
                   dy = at::randn({7, 45});
  const at::Tensor g64 = Oracle(gate), u64 = Oracle(up);
  const std::pair<Activation, at::Tensor> oracles[] = {
      {Activation::kSilu, at::silu(g64) * u64},
      {Activation::kGelu, at::gelu(g64, "none") * u64},
      {Activation::kGeluTanh, at::gelu(g64, "tanh") * u64}};
  for (const auto& [activation, y] : oracles) {
    const auto grads = Grads(y, dy, {g64, u64});
    const at::Tensor g = gate.clone(), u = up.clone(), d = dy.clone();
    const at::Tensor out = at::empty_like(d);
    GatedActivation(activation, Wrap(g), Wrap(u), Wrap(out));
    ExpectNear(out, y, "forward");
    GatedActivationBackward(activation, Wrap(g), Wrap(u), Wrap(d));
    ExpectNear(d, y, "out");
    ExpectNear(g, grads[0], "gate");
    ExpectNear(u, grads[1], "up");
  }
}

// One document of the fused oracle: q [n, heads * dim] and so on.
at::Tensor OracleAttention(const at::Tensor& q, const at::Tensor& k,
                           const at::Tensor& v, const AttentionShape& s) {
  const int64_t n = q.size(0);
  const auto split = [&](const at::Tensor& x, int heads) {
    return x.reshape({n, heads, s.dim})
        .repeat_interleave(s.heads / heads, 1)
        .transpose(0, 1);
  };
  const at::Tensor mask = at::full({n, n}, -INFINITY, q.options()).triu(1);
  const at::Tensor p =
      (split(q, s.heads).matmul(split(k, s.kv_heads).transpose(1, 2)) /
           std::sqrt(s.dim) +
       mask)
          .softmax(-1);
  return p.matmul(split(v, s.kv_heads))
      .transpose(0, 1)
      .reshape({n, s.heads * s.dim});
}

void CheckAttention(const AttentionShape& shape,
                    const std::vector<int32_t>& offsets) {
  const int64_t rows = offsets.back();
  const int64_t wide = shape.heads * shape.dim;
  const int64_t narrow = shape.kv_heads * shape.dim;
  const at::Tensor q = at::randn({rows, wide}), k = at::randn({rows, narrow}),
                   v = at::randn({rows, narrow}), dy = at::randn({rows, wide});
  const at::Tensor out = at::empty_like(q), dq = at::empty_like(q),
                   dk = at::empty_like(k), dv = at::empty_like(k);
  std::vector<float> lse(shape.heads * rows);
  const at::Tensor scratch =
      at::empty({AttentionScratchBytes(shape, rows, NumThreads())}, at::kByte);
  const AttentionArgs args = {.shape = shape,
                              .offsets = offsets,
                              .q = Wrap(q),
                              .k = Wrap(k),
                              .v = Wrap(v),
                              .out = Wrap(out),
                              .lse = lse.data(),
                              .scratch = scratch.data_ptr()};
  Attention(args);
  AttentionBackward(args, Wrap(dy), Wrap(dq), Wrap(dk), Wrap(dv));
  const at::Tensor q64 = Oracle(q), k64 = Oracle(k), v64 = Oracle(v);
  std::vector<at::Tensor> documents;
  for (size_t d = 0; d + 1 < offsets.size(); ++d) {
    const auto cut = [&](const at::Tensor& x) {
      return x.slice(0, offsets[d], offsets[d + 1]);
    };
    documents.push_back(OracleAttention(cut(q64), cut(k64), cut(v64), shape));
  }
  const at::Tensor y = at::cat(documents);
  const auto grads = Grads(y, dy, {q64, k64, v64});
  ExpectNear(out, y, "out");
  ExpectNear(dq, grads[0], "dq");
  ExpectNear(dk, grads[1], "dk");
  ExpectNear(dv, grads[2], "dv");
}

TEST_F(OpsTest, Parallel_UsesEveryThread) {
#ifdef __clang__
  GTEST_SKIP() << "built by Clang, without OpenMP";
#endif
  at::set_num_threads(2);
  std::atomic<int> arrived{0};
  // Each waits for the other.
  Parallel(2, 1, [&](int64_t begin, int64_t end) {
    EXPECT_EQ(end - begin, 1);
    ++arrived;
    const auto limit =
        std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (arrived < 2 && std::chrono::steady_clock::now() < limit) {
      std::this_thread::yield();
    }
    EXPECT_EQ(arrived, 2);
  });
}

TEST_F(OpsTest, Attention) {
  CheckAttention({1, 1, 8}, {0, 1});
  CheckAttention({4, 2, 6}, {0, 63, 64, 193});
  CheckAttention({9, 3, 64}, {0, 130, 135});
  CheckAttention({6, 1, 40}, {0, 64, 128, 129});
  CheckAttention({2, 2, 128}, {0, 200});
}

struct LinearCase {
  bool bias = false;
  int rank = 0;
  float dropout = 0;
};

void CheckLinear(const LinearCase& which, int64_t rows, int64_t in,
                 int64_t out) {
  const at::Tensor x = at::randn({rows, in}), w = at::randn({out, in}),
                   b = at::randn({out}), dy = at::randn({rows, out});
  const at::Tensor la = at::randn({which.rank, in}),
                   lb = at::randn({out, which.rank});
  const at::Tensor da = at::ones_like(la), db = at::ones_like(lb);
  const at::Tensor dw = at::ones_like(w), dbias = at::ones_like(b);
  std::vector<uint64_t> keys(rows);
  for (int64_t r = 0; r < rows; ++r) keys[r] = MixKeys(5, r);
  const at::Tensor narrow = at::empty({rows, which.rank}),
                   xa = at::empty({rows, which.rank}),
                   dropped = at::empty({rows, in}), buffer = at::empty({1});
  LinearCall call;
  call.weight.out_features = out;
  call.weight.in_features = in;
  call.weight.data = w.data_ptr();
  if (which.bias) call.weight.bias = b.data_ptr<float>();
  call.lora = {which.rank,
               1.5f,
               la.data_ptr<float>(),
               lb.data_ptr<float>(),
               da.data_ptr<float>(),
               db.data_ptr<float>(),
               {which.dropout, keys, 3}};
  call.scratch.narrow = narrow.data_ptr();
  call.scratch.dropped = dropped.data_ptr();
  const at::Tensor y = at::ones({rows, out}), dx = at::ones_like(x);
  AdapterInputProduct(call, Wrap(x), xa.data_ptr());
  LinearProduct(call, Wrap(x), Wrap(y), true, xa.data_ptr());
  AdapterOutputGrad(call, xa.data_ptr(), Wrap(dy));
  LinearInputGrad(call, Wrap(dy), Wrap(dx), true);
  AdapterInputGrad(call, Wrap(x));
  LinearWeightGrad(call, Wrap(x), Wrap(dy), dw.data_ptr<float>(),
                   dbias.data_ptr<float>());

  const at::Tensor mask = at::empty_like(x);
  ApplyDropout(Wrap(at::ones_like(x)), keys, 3, which.dropout, false,
               Wrap(mask));
  const at::Tensor x64 = Oracle(x), w64 = Oracle(w), b64 = Oracle(b),
                   a64 = Oracle(la), lb64 = Oracle(lb);
  at::Tensor expected = x64.matmul(w64.t()) + 1;
  if (which.bias) expected = expected + b64;
  if (which.rank > 0) {
    expected = expected + (x64 * mask).matmul(a64.t()).matmul(lb64.t()) * 1.5;
  }
  ExpectNear(y, expected, "y");
  const auto grads = Grads(expected, dy, {x64, w64});
  ExpectNear(dx, grads[0] + 1, "dx");
  ExpectNear(dw, grads[1] + 1, "dw");
  ExpectNear(dbias, dy.sum(0) + 1, "dbias");
  if (which.rank == 0) return;
  // The graph is freed by the first call.
  const at::Tensor low = (x64 * mask).matmul(a64.t()).matmul(lb64.t()) * 1.5;
  const auto lora_grads = Grads(low, dy, {a64, lb64});
  ExpectNear(da, lora_grads[0] + 1, "da");
  ExpectNear(db, lora_grads[1] + 1, "db");
}

TEST_F(OpsTest, Linear) {
  CheckLinear({}, 1, 1, 1);
  CheckLinear({.bias = true}, 33, 65, 17);
  CheckLinear({.rank = 1}, 33, 65, 17);
  CheckLinear({.bias = true, .rank = 8}, 70, 31, 129);
  CheckLinear({.rank = 5, .dropout = 0.3f}, 45, 67, 19);
}

TEST_F(OpsTest, QuantizedLinearUsesTheDequantizedWeight) {
  const int64_t in = 37, out = 29, n = in * out;
  const at::Tensor w = at::randn({out, in}), image = at::empty({out, in});
  const kernels::BlockwiseShape shape = {n, 64};
  std::vector<uint8_t> codes(shape.code_bytes()),
      absmax_codes(shape.num_blocks());
  std::vector<float> absmax_scale(shape.num_nested_blocks());
  float offset = 0;
  const at::Tensor workspace = at::empty({shape.num_blocks()});
  LinearWeight weight;
  weight.format = WeightFormat::kNf4;
  weight.out_features = out;
  weight.in_features = in;
  weight.data = codes.data();
  weight.block_size = 64;
  kernels::MutableScales scales;
  scales.absmax_codes = absmax_codes.data();
  scales.absmax_scale = absmax_scale.data();
  scales.offset = &offset;
  ASSERT_EQ(kernels::ReferenceBackend().Run(
                {.workspace = workspace.data_ptr(),
                 .workspace_bytes = shape.num_blocks() * 4},
                kernels::Quantize{.x = w.data_ptr(),
                                  .shape = shape,
                                  .codes = codes.data(),
                                  .scales = scales}),
            kernels::Result::kOk);
  weight.scales.absmax_codes = absmax_codes.data();
  weight.scales.absmax_scale = absmax_scale.data();
  weight.scales.offset = &offset;
  const at::Tensor buffer = at::empty({out, in});
  const View part =
      MaterializeRows(weight, 5, 20, Dtype::kFloat32, buffer.data_ptr());
  EXPECT_EQ(part.rows, 15);
  ASSERT_EQ(kernels::ReferenceBackend().Run(
                {}, kernels::Dequantize{.codes = codes.data(),
                                        .scales = weight.scales,
                                        .rows = out,
                                        .out = Wrap(image)}),
            kernels::Result::kOk);
  EXPECT_TRUE(buffer.slice(0, 0, 15).equal(image.slice(0, 5, 20)));
}

// The head in several chunks, and stored in another type.
TEST_F(OpsTest, LossInChunks) {
  const int64_t rows = 23, hidden = 19, vocab = 101, chunk = 7;
  const at::Tensor x = at::randn({rows, hidden}), norm = at::randn({hidden}),
                   head = at::randn({vocab, hidden}).to(at::kBFloat16);
  std::vector<int32_t> targets(rows);
  for (int64_t i = 0; i < rows; ++i) {
    targets[i] = i % 4 == 1 ? kIgnoredLabel : static_cast<int32_t>(i * 4);
  }
  const at::Tensor normed = at::empty({rows, hidden}),
                   dnormed = at::empty({rows, hidden}),
                   rstd = at::empty({rows}),
                   losses = at::empty({rows}, at::kDouble);
  const int64_t bytes =
      LossScratchBytes(Dtype::kFloat32, rows, chunk, vocab, hidden);
  const at::Tensor scratch = at::empty({bytes}, at::kByte);
  LossArgs args;
  args.x = Wrap(x);
  args.targets = targets;
  args.norm = norm.data_ptr<float>();
  args.norm_eps = 1e-5f;
  args.head.format = WeightFormat::kBfloat16;
  args.head.out_features = vocab;
  args.head.in_features = hidden;
  args.head.data = head.data_ptr();
  args.chunk = chunk;
  args.normed = normed.data_ptr();
  args.dnormed = dnormed.data_ptr();
  args.rstd = rstd.data_ptr<float>();
  args.losses = losses.data_ptr<double>();
  args.scratch = scratch.data_ptr();
  args.scratch_bytes = bytes;
  const at::Tensor dx = at::empty_like(x), dnorm = at::zeros_like(norm),
                   dhead = at::zeros({vocab, hidden});
  const double loss = LossBackward(
      args, 0.25f,
      {Wrap(dx), dnorm.data_ptr<float>(), dhead.data_ptr<float>()});
  EXPECT_EQ(Loss(args), loss);

  const at::Tensor x64 = Oracle(x), n64 = Oracle(norm), h64 = Oracle(head);
  const at::Tensor y = x64 * ((x64 * x64).mean(-1, true) + 1e-5).rsqrt() * n64;
  const at::Tensor index =
      at::tensor(at::ArrayRef<int32_t>(targets)).to(at::kLong);
  const at::Tensor expected =
      at::nll_loss(y.matmul(h64.t()).log_softmax(-1), index, {},
                   at::Reduction::Sum, kIgnoredLabel);
  EXPECT_NEAR(loss, expected.item<double>(), 1e-6 * loss);
  const auto grads = torch::autograd::grad({expected * 0.25}, {x64, n64, h64});
  ExpectNear(dx, grads[0], "dx");
  ExpectNear(dnorm, grads[1], "dnorm");
  ExpectNear(dhead, grads[2], "dhead");
  EXPECT_EQ(dx[1].abs().sum().item<float>(), 0);
}

}  // namespace
}  // namespace qlora::trainer
