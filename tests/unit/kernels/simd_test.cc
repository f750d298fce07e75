// Attention of every instruction set against plain float64 loops.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/cpu/simd/kernels.h"

namespace qlora::kernels {
namespace {

std::vector<float> Random(int64_t n, uint32_t seed, float size = 2) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> values(-size, size);
  std::vector<float> x(n);
  for (float& v : x) v = values(random);
  return x;
}

class SimdTest : public ::testing::TestWithParam<NamedKernelSet> {
 protected:
  const Kernels<float>& f32() const { return GetParam().kernels->float32; }
};

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
