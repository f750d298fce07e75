// The row kernels of every instruction set against plain float64 loops.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/simd/kernels.h"

namespace qlora::kernels {
namespace {

// Around the widths of the vectors.
constexpr int64_t kLengths[] = {1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 100};

std::vector<float> Random(int64_t n, uint32_t seed, float size = 2) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> values(-size, size);
  std::vector<float> x(n);
  for (float& v : x) v = values(random);
  return x;
}

float ToFloat(Bf16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

class SimdTest : public ::testing::TestWithParam<NamedKernelSet> {
 protected:
  const Kernels<float>& f32() const { return GetParam().kernels->float32; }
  const Kernels<Bf16>& bf16() const { return GetParam().kernels->bfloat16; }
};

TEST_P(SimdTest, RmsNorm) {
  for (const int64_t n : kLengths) {
    const auto x = Random(n, 1), w = Random(n, 2);
    double squares = 0;
    for (const float v : x) squares += double{v} * v;
    const double expected = 1 / std::sqrt(squares / n + 1e-5);
    std::vector<float> out(n + 1, 9.0f);
    float rstd = 0;
    f32().rms_norm(x.data(), w.data(), n, 1e-5f, out.data(), &rstd);
    EXPECT_NEAR(rstd, expected, 1e-6 * expected);
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_NEAR(out[i], x[i] * expected * w[i], 2e-6);
    }
    EXPECT_EQ(out[n], 9.0f);
  }
}

TEST_P(SimdTest, SwiGlu) {
  for (const int64_t n : kLengths) {
    const auto gate = Random(n, 1, 20), up = Random(n, 2);
    std::vector<float> out(n + 1, 9.0f);
    f32().swiglu(gate.data(), up.data(), n, out.data());
    for (int64_t i = 0; i < n; ++i) {
      const double expected =
          gate[i] / (1 + std::exp(-double{gate[i]})) * up[i];
      EXPECT_NEAR(out[i], expected, 1e-6 * std::fabs(expected) + 1e-12);
    }
    EXPECT_EQ(out[n], 9.0f);
  }
}

TEST_P(SimdTest, SwiGluOfExtremesIsFinite) {
  const std::vector<float> gate = {-3e38f, -200, -90, 0, 90, 200, 3e38f};
  const std::vector<float> up(gate.size(), 1.0f);
  std::vector<float> out(gate.size());
  f32().swiglu(gate.data(), up.data(), 7, out.data());
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(out[i], 0, 1e-5) << i;
  for (int i = 4; i < 7; ++i) EXPECT_EQ(out[i], gate[i]) << i;
}

TEST_P(SimdTest, CrossEntropy) {
  for (const int64_t n : {2, 5, 16, 17, 1000, 1024, 1025, 4099}) {
    auto logits = Random(n, 3, 8);
    const auto before = logits;
    double sum = 0;
    for (const float l : before) sum += std::exp(double{l});
    const int64_t target = n / 2;
    const double expected = std::log(sum) - before[target];
    EXPECT_NEAR(f32().cross_entropy(logits.data(), n, target, 0, false),
                expected, 1e-6 * expected + 1e-6);
    EXPECT_EQ(logits, before);
    f32().cross_entropy(logits.data(), n, target, 0.5f, true);
    for (int64_t i = 0; i < n; ++i) {
      const double p = std::exp(double{before[i]}) / sum - (i == target);
      EXPECT_NEAR(logits[i], 0.5 * p, 1e-6);
    }
  }
}

TEST_P(SimdTest, CrossEntropyOfLargeLogitsAndInfinities) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> logits = {3e4f, -inf, 3e4f, -3e4f, 0};
  EXPECT_NEAR(f32().cross_entropy(logits.data(), 5, 0, 1, true), std::log(2.0),
              1e-6);
  EXPECT_NEAR(logits[0], -0.5, 1e-6);
  EXPECT_EQ(logits[1], 0);
  logits[3] = NAN;
  EXPECT_TRUE(std::isnan(f32().cross_entropy(logits.data(), 5, 0, 1, false)));
}

TEST_P(SimdTest, BfloatConversion) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const int64_t n : kLengths) {
    auto x = Random(n, 5);
    if (n > 7) {
      x[1] = inf;
      x[2] = NAN;
      x[3] = 1 + 0x1p-8f;      // a tie, to even
      x[4] = 1 + 3 * 0x1p-8f;  // a tie, to even
      x[5] = 3.4e38f;          // rounds to infinity
      x[6] = 0x1p-130f;        // subnormal
    }
    std::vector<Bf16> narrow(n);
    std::vector<float> back(n);
    bf16().from_float(x.data(), n, narrow.data());
    bf16().to_float(narrow.data(), n, back.data());
    for (int64_t i = 0; i < n; ++i) {
      if (n > 7 && (i == 1 || i == 2 || i == 5)) continue;
      EXPECT_EQ(back[i], ToFloat(narrow[i]));
      EXPECT_LE(std::fabs(back[i] - x[i]), std::fabs(x[i]) * 0x1p-8f);
    }
    if (n <= 7) continue;
    EXPECT_EQ(back[1], inf);
    EXPECT_TRUE(std::isnan(back[2]));
    EXPECT_EQ(back[3], 1.0f);
    EXPECT_EQ(back[4], 1 + 0x1p-6f);
    EXPECT_EQ(back[5], inf);
    EXPECT_EQ(back[6], x[6]);
  }
}

TEST_P(SimdTest, DropoutHasTheSameMaskInEverySet) {
  const int64_t n = 1003;
  const std::vector<float> x(n, 1.0f);
  const DropoutRow row = {{123, 456}, 0x40000000, 4.0f / 3};
  std::vector<float> out(n), expected(n);
  f32().dropout(x.data(), n, row, false, out.data());
  SimdKernels().float32.dropout(x.data(), n, row, false, expected.data());
  EXPECT_EQ(out, expected);
  int64_t dropped = 0;
  for (const float v : out) dropped += v == 0;
  EXPECT_NEAR(static_cast<double>(dropped) / n, 0.25, 0.05);
  f32().dropout(x.data(), n, row, true, out.data());
  for (int64_t i = 0; i < n; ++i) EXPECT_EQ(out[i], 2 * expected[i]);
}

// One head, plain loops.
std::vector<double> ReferenceAttention(const std::vector<float>& q,
                                       const std::vector<float>& k,
                                       const std::vector<float>& v,
                                       int64_t queries, int64_t past, int dim) {
  std::vector<double> out(queries * dim);
  for (int64_t i = 0; i < queries; ++i) {
    std::vector<double> p(past + i + 1);
    double sum = 0;
    for (size_t j = 0; j < p.size(); ++j) {
      double score = 0;
      for (int d = 0; d < dim; ++d) score += q[i * dim + d] * k[j * dim + d];
      sum += p[j] = std::exp(score / std::sqrt(dim));
    }
    for (size_t j = 0; j < p.size(); ++j) {
      for (int d = 0; d < dim; ++d) {
        out[i * dim + d] += p[j] / sum * v[j * dim + d];
      }
    }
  }
  return out;
}

TEST_P(SimdTest, AttentionWithAPast) {
  for (const int dim : {6, 16, 64, 80}) {
    for (const auto& [queries, past] : std::vector<std::pair<int, int>>{
             {1, 0}, {1, 63}, {1, 64}, {65, 0}, {5, 130}, {70, 30}}) {
      const int64_t keys = queries + past;
      const auto q = Random(queries * dim, 1), k = Random(keys * dim, 2),
                 v = Random(keys * dim, 3);
      std::vector<float> out(queries * dim), lse(queries);
      std::vector<float> scratch((5 * (keys + 64) + 192) * (dim + 15) + 8320);
      AttentionTask<float> t{};
      t.q = q.data();
      t.k = k.data();
      t.v = v.data();
      t.q_stride = t.k_stride = t.v_stride = t.out_stride = dim;
      t.out = out.data();
      t.lse = lse.data();
      t.queries = queries;
      t.past = past;
      t.heads = 1;
      t.dim = dim;
      t.scale = 1 / std::sqrt(static_cast<float>(dim));
      t.scratch = scratch.data();
      f32().attention(t);
      const auto expected = ReferenceAttention(q, k, v, queries, past, dim);
      for (size_t i = 0; i < out.size(); ++i) {
        EXPECT_NEAR(out[i], expected[i], 5e-6)
            << dim << " " << queries << " " << past << " " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, SimdTest,
                         ::testing::ValuesIn(SupportedKernels().begin(),
                                             SupportedKernels().end()),
                         [](const auto& info) {
                           return std::string(info.param.name);
                         });

}  // namespace
}  // namespace qlora::kernels
