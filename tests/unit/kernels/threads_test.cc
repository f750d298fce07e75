// Ops on real threads give the bits that they give on one.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "kernels/backend.h"

namespace qlora::kernels {
namespace {

constexpr int kThreads = 4;
// Enough for several grains.
constexpr int64_t kRows = 200;
constexpr int64_t kColumns = 512;
constexpr int64_t kSize = kRows * kColumns;

// Grains go to whichever thread is free.
Launch Threaded() {
  Launch launch;
  launch.threads = kThreads;
  launch.parallel_for = [](int64_t n, int64_t grain, const auto& body) {
    std::atomic<int64_t> next = 0;
    const auto work = [&] {
      for (int64_t begin; (begin = next.fetch_add(grain)) < n;) {
        body(begin, std::min(n, begin + grain));
      }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < kThreads; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
  };
  return launch;
}

// What an op reads, or its results.
using Floats = std::vector<float>;

Floats Values(uint64_t seed, int64_t n = kSize) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  Floats values(n);
  for (float& v : values) v = normal(engine);
  return values;
}

View Rows(const Floats& values) {
  return FloatView(values.data(), kRows, kColumns);
}

std::vector<int32_t> Numbers(int32_t below) {
  std::mt19937 engine(7);
  std::vector<int32_t> numbers(kRows);
  for (int32_t& n : numbers) n = static_cast<int32_t>(engine() % below);
  return numbers;
}

class ThreadsTest : public testing::TestWithParam<const Backend*> {
 protected:
  template <typename Op>
  void Run(const Launch& launch, const Op& op) const {
    Launch with_room = launch;
    with_room.workspace_bytes = GetParam()->WorkspaceBytes(op, launch.threads);
    std::vector<double> room(with_room.workspace_bytes / 8 + 16);
    with_room.workspace = reinterpret_cast<void*>(
        (reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
    ASSERT_EQ(GetParam()->Run(with_room, op), Result::kOk);
  }

  // `compute` runs its op and returns all that it wrote.
  void ExpectSame(const std::function<Floats(const Launch&)>& compute) const {
    const Floats want = compute(Launch{});
    for (int i = 0; i < 5; ++i) {
      const Floats got = compute(Threaded());
      ASSERT_EQ(std::memcmp(got.data(), want.data(), 4 * want.size()), 0);
    }
  }
};

TEST_P(ThreadsTest, Dropout) {
  const Floats x = Values(1);
  std::vector<uint64_t> keys(kRows);
  for (int64_t r = 0; r < kRows; ++r) keys[r] = 1000 + r;
  ExpectSame([&](const Launch& launch) {
    Floats out(kSize);
    Run(launch, kernels::Dropout{.x = Rows(x),
                                 .row_keys = keys.data(),
                                 .module = 3,
                                 .probability = 0.3f,
                                 .out = Rows(out)});
    return out;
  });
}

TEST_P(ThreadsTest, Norms) {
  const Floats start = Values(1), add = Values(2), dy = Values(3);
  const Floats weight = Values(4, kColumns);
  ExpectSame([&](const Launch& launch) {
    Floats x = start, out(kSize), mean(kRows), rstd(kRows);
    Floats dx(kSize), sums(2 * kColumns);
    Run(launch, LayerNorm{.x = Rows(x),
                          .add = Rows(add),
                          .weight = weight.data(),
                          .eps = 1e-5f,
                          .out = Rows(out),
                          .mean = mean.data(),
                          .rstd = rstd.data()});
    Run(launch, LayerNormBackward{.x = Rows(x),
                                  .weight = weight.data(),
                                  .mean = mean.data(),
                                  .rstd = rstd.data(),
                                  .dy = Rows(dy),
                                  .dx = Rows(dx),
                                  .dweight = sums.data(),
                                  .dbias = sums.data() + kColumns});
    for (const Floats* more : {&out, &mean, &rstd, &dx, &sums}) {
      x.insert(x.end(), more->begin(), more->end());
    }
    return x;
  });
}

TEST_P(ThreadsTest, RotaryWithNorms) {
  constexpr int kDim = 64;
  const Floats start = Values(1), grad = Values(2);
  const Floats cos = Values(3, kRows * kDim / 2), sin = Values(4, cos.size());
  const Floats query = Values(5, kDim), key = Values(6, kDim);
  const std::vector<int32_t> position = Numbers(kRows);
  ExpectSame([&](const Launch& launch) {
    Floats x = start, dx = grad, rstd(kRows * 8), weights(2 * kDim);
    kernels::Rotary op = {.x = Rows(x),
                          .heads = 8,
                          .dim = kDim,
                          .rotary_dim = kDim,
                          .cos = cos.data(),
                          .sin = sin.data(),
                          .positions = kRows,
                          .position = position.data(),
                          .query_norm = query.data(),
                          .key_norm = key.data(),
                          .query_heads = 5,
                          .norm_eps = 1e-5f,
                          .rstd = rstd.data()};
    Run(launch, op);
    op.x = Rows(dx);
    Run(launch, RotaryNormBackward{.rotary = op,
                                   .input = Rows(start),
                                   .dquery_norm = weights.data(),
                                   .dkey_norm = weights.data() + kDim});
    x.insert(x.end(), dx.begin(), dx.end());
    x.insert(x.end(), weights.begin(), weights.end());
    return x;
  });
}

TEST_P(ThreadsTest, GatedActivation) {
  const Floats first = Values(1), second = Values(2), third = Values(3);
  ExpectSame([&](const Launch& launch) {
    Floats gate = first, up = second, d = third;
    Run(launch, GatedActivationBackward{
                    .gate = Rows(gate), .up = Rows(up), .d = Rows(d)});
    d.insert(d.end(), gate.begin(), gate.end());
    d.insert(d.end(), up.begin(), up.end());
    return d;
  });
}

TEST_P(ThreadsTest, Embedding) {
  const Floats dx = Values(1);
  const std::vector<int32_t> tokens = Numbers(9);
  ExpectSame([&](const Launch& launch) {
    Floats table(kSize), sums(kColumns);
    Run(launch,
        EmbeddingBackward{
            .tokens = tokens.data(), .dx = Rows(dx), .dtable = Rows(table)});
    Run(launch, ColumnSums{.x = Rows(table), .sums = sums.data()});
    table.insert(table.end(), sums.begin(), sums.end());
    return table;
  });
}

TEST_P(ThreadsTest, CrossEntropy) {
  const Floats start = Values(1);
  const std::vector<int32_t> targets = Numbers(kColumns);
  ExpectSame([&](const Launch& launch) {
    Floats logits = start;
    std::vector<double> loss(kRows);
    Run(launch, kernels::CrossEntropy{.logits = Rows(logits),
                                      .targets = targets.data(),
                                      .backward = true,
                                      .loss = loss.data()});
    logits.insert(logits.end(), loss.begin(), loss.end());
    return logits;
  });
}

TEST_P(ThreadsTest, AdamW) {
  const Floats start = Values(1), gradient = Values(2);
  ExpectSame([&](const Launch& launch) {
    Floats param = start, grad = gradient, average(kSize), square(kSize);
    double sum = 0;
    Run(launch, kernels::AdamW{.n = kSize,
                               .param = param.data(),
                               .grad = grad.data(),
                               .moments = {.exp_avg = average.data(),
                                           .exp_avg_sq = square.data()},
                               .learning_rate = 1e-3,
                               .grad_sum_of_squares = &sum});
    param.insert(param.end(), average.begin(), average.end());
    param.push_back(static_cast<float>(sum));
    return param;
  });
}

TEST_P(ThreadsTest, NestedQuantization) {
  const Floats x = Values(1);
  constexpr BlockwiseShape kShape{kSize, 64};
  ExpectSame([&](const Launch& launch) {
    std::vector<uint8_t> codes(kShape.code_bytes());
    std::vector<uint8_t> absmax(kShape.num_blocks());
    Floats scale(kShape.num_nested_blocks()), out(kSize);
    float offset = 0;
    Run(launch, Quantize{.x = x.data(),
                         .shape = kShape,
                         .codes = codes.data(),
                         .scales = {.absmax_codes = absmax.data(),
                                    .absmax_scale = scale.data(),
                                    .offset = &offset}});
    Run(launch, Dequantize{.codes = codes.data(),
                           .scales = {.absmax_codes = absmax.data(),
                                      .absmax_scale = scale.data(),
                                      .offset = &offset},
                           .rows = kRows,
                           .block_size = 64,
                           .out = Rows(out)});
    return out;
  });
}

TEST_P(ThreadsTest, Attention) {
  constexpr int kHeads = 2, kDim = 16, kWide = kHeads * kDim;
  constexpr int64_t kTokens = 300;
  const Floats q = Values(1, kTokens * kWide), k = Values(2, q.size()),
               v = Values(3, q.size()), dout = Values(4, q.size());
  const int32_t offsets[] = {0, 40, kTokens};
  const auto view = [](const Floats& x) {
    return FloatView(x.data(), kTokens, kWide);
  };
  ExpectSame([&](const Launch& launch) {
    Floats out(q.size()), dq(q.size()), dk(q.size()), dv(q.size());
    Floats lse(kHeads * kTokens);
    const kernels::Attention op = {.heads = kHeads,
                                   .kv_heads = kHeads,
                                   .dim = kDim,
                                   .offsets = offsets,
                                   .documents = 2,
                                   .q = view(q),
                                   .k = view(k),
                                   .v = view(v),
                                   .out = view(out),
                                   .lse = lse.data()};
    Run(launch, op);
    Run(launch, AttentionBackward{.forward = op,
                                  .dout = view(dout),
                                  .dq = view(dq),
                                  .dk = view(dk),
                                  .dv = view(dv)});
    for (const Floats* more : {&lse, &dq, &dk, &dv}) {
      out.insert(out.end(), more->begin(), more->end());
    }
    return out;
  });
}

INSTANTIATE_TEST_SUITE_P(Cpu, ThreadsTest,
                         testing::Values(CpuBackends().front(),
                                         CpuBackends().back()));

}  // namespace
}  // namespace qlora::kernels
