// Every instruction set against the reference, over random shapes with tails:
// codes, scales and values byte for byte.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/nf4_kernels.h"

namespace qlora::kernels {
namespace {

constexpr int kCases = 2500;

struct Case {
  std::mt19937 engine;
  int64_t Below(int64_t n) { return static_cast<int64_t>(engine() % n); }

  BlockwiseShape Shape() {
    const int block_size = 32 << Below(8);
    const int64_t limit = Below(2) == 0 ? 300 : 9000;
    return {Below(7) == 0 ? block_size * (1 + Below(4)) : 1 + Below(limit),
            block_size};
  }

  // From subnormal to large, with the values that have rules of their own.
  std::vector<float> Values(int64_t n) {
    std::normal_distribution<float> normal(0, 0.02f);
    const float scale = std::ldexp(1.0f, static_cast<int>(Below(250)) - 140);
    std::vector<float> x(n);
    for (float& value : x) value = normal(engine) * scale;
    constexpr float kSpecial[] = {std::numeric_limits<float>::quiet_NaN(),
                                  std::numeric_limits<float>::infinity(), -0.0f,
                                  1e-42f};
    for (int64_t i = Below(4); i > 1; --i) x[Below(n)] = kSpecial[Below(4)];
    if (Below(11) == 0) std::fill_n(x.begin(), std::min<int64_t>(n, 64), 0.0f);
    return x;
  }
};

class Nf4BackendTest : public testing::TestWithParam<const Nf4Kernels*> {};

// One byte more than is written, to see that it stays.
struct Blocks {
  std::vector<float> absmax;
  std::vector<uint8_t> codes;
  Blocks(const Nf4Kernels& kernels, const std::vector<float>& x,
         const BlockwiseShape& shape)
      : absmax(shape.num_blocks()), codes(shape.code_bytes() + 1, 0xa5) {
    QuantizeBlocks(kernels, x.data(), shape, 0, shape.num_blocks(),
                   absmax.data(), codes.data());
  }
};

template <typename T>
std::vector<uint8_t> Bytes(const std::vector<T>& values) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  return {bytes, bytes + values.size() * sizeof(T)};
}

TEST_P(Nf4BackendTest, QuantizesBlocksAsTheReference) {
  for (int seed = 0; seed < kCases; ++seed) {
    Case random{std::mt19937(seed)};
    const BlockwiseShape shape = random.Shape();
    const std::vector<float> x = random.Values(shape.num_elements);
    const Blocks expected(kNf4Reference, x, shape);
    const Blocks actual(*GetParam(), x, shape);
    ASSERT_EQ(Bytes(actual.absmax), Bytes(expected.absmax)) << seed;
    ASSERT_EQ(actual.codes, expected.codes) << seed;
  }
}

TEST_P(Nf4BackendTest, QuantizesScalesAsTheReference) {
  for (int seed = 0; seed < kCases; ++seed) {
    Case random{std::mt19937(seed)};
    const int64_t n = 1 + random.Below(kNestedBlockSize);
    std::vector<float> absmax = random.Values(n);
    for (float& value : absmax) value = std::fabs(value);
    const float offset = random.Below(9) == 0 ? 0.0f : absmax[random.Below(n)];
    std::vector<float> scale(2);
    std::vector<uint8_t> expected(n + 1, 0xa5), actual(n + 1, 0xa5);
    kNf4Reference.quantize_scales(absmax.data(), n, offset, &scale[0],
                                  expected.data());
    GetParam()->quantize_scales(absmax.data(), n, offset, &scale[1],
                                actual.data());
    ASSERT_EQ(Bytes<float>({scale[1]}), Bytes<float>({scale[0]})) << seed;
    ASSERT_EQ(actual, expected) << seed;
  }
}

// Elements [begin, end) at `shift` elements into a buffer of canaries.
std::vector<uint8_t> Expand(const Nf4Kernels& kernels, const Blocks& blocks,
                            const ScalesView& scales, int block_size,
                            int64_t begin, int64_t end, Dtype type,
                            int64_t shift, bool stream) {
  const int64_t size = type == Dtype::kFloat32 ? 4 : 2;
  std::vector<uint8_t> buffer((end - begin + 48) * size + 64, 0xa5);
  const auto misaligned = reinterpret_cast<uintptr_t>(buffer.data()) % 64;
  uint8_t* out = buffer.data() + (64 - misaligned) % 64;
  kernels.expand(blocks.codes.data(), scales, block_size, begin, end, type,
                 out + shift * size, stream);
  return {out, out + (end - begin + 32) * size};
}

TEST_P(Nf4BackendTest, ExpandsAsTheReference) {
  for (int seed = 0; seed < kCases; ++seed) {
    Case random{std::mt19937(seed)};
    const BlockwiseShape shape = random.Shape();
    const std::vector<float> x = random.Values(shape.num_elements);
    const Blocks blocks(kNf4Reference, x, shape);
    std::vector<uint8_t> codes(shape.num_blocks());
    for (uint8_t& code : codes) code = random.Below(256);
    const std::vector<float> nested = random.Values(shape.num_nested_blocks());
    ScalesView scales{.absmax = blocks.absmax.data()};
    if (random.Below(2) == 0) {
      scales = {.absmax_codes = codes.data(),
                .absmax_scale = nested.data(),
                .offset = blocks.absmax[0]};
    }
    const int64_t n = shape.num_elements;
    const int64_t begin = random.Below(3) == 0 ? 0 : random.Below(n);
    const int64_t end = begin + random.Below(n - begin + 1);
    const int64_t shift = random.Below(2) * random.Below(32);
    const bool stream = random.Below(2) == 0;
    for (const Dtype type :
         {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16}) {
      ASSERT_EQ(Expand(*GetParam(), blocks, scales, shape.block_size, begin,
                       end, type, shift, stream),
                Expand(kNf4Reference, blocks, scales, shape.block_size, begin,
                       end, type, shift, stream))
          << seed;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Nf4BackendTest, testing::ValuesIn(Nf4Available()),
                         [](const auto& suite) {
                           return std::string(suite.param->name);
                         });

}  // namespace
}  // namespace qlora::kernels
