#include "kernels/nf4.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace qlora::kernels {
namespace {

// Several real threads with uneven ranges.
void ThreadedFor(int64_t n, int64_t grain,
                 const std::function<void(int64_t, int64_t)>& body) {
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < n;) {
    const int64_t end =
        threads.size() == 3 ? n : std::min(n, begin + 3 * grain);
    threads.emplace_back([&body, begin, end] { body(begin, end); });
    begin = end;
  }
  for (std::thread& thread : threads) thread.join();
}

struct Quantized {
  BlockwiseShape shape;
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  std::vector<uint8_t> absmax_codes;
  std::vector<float> absmax_scale;
  float offset = 0;
  ScalesView view() const {
    if (!absmax.empty()) return {.absmax = absmax.data()};
    return {.absmax_codes = absmax_codes.data(),
            .absmax_scale = absmax_scale.data(),
            .offset = offset};
  }
};

Quantized Quantize(const std::vector<float>& x, int block_size, bool nested,
                   const ParallelFor& parallel_for = SerialFor) {
  Quantized q;
  q.shape = {static_cast<int64_t>(x.size()), block_size};
  q.codes.resize(q.shape.code_bytes());
  MutableScales scales;
  if (nested) {
    q.absmax_codes.resize(q.shape.num_blocks());
    q.absmax_scale.resize(q.shape.num_nested_blocks());
    scales = {.absmax_codes = q.absmax_codes.data(),
              .absmax_scale = q.absmax_scale.data(),
              .offset = &q.offset};
  } else {
    q.absmax.resize(q.shape.num_blocks());
    scales = {.absmax = q.absmax.data()};
  }
  std::vector<uint8_t> workspace(QuantizeNf4WorkspaceBytes(q.shape, nested));
  EXPECT_EQ(QuantizeNf4(x.data(), q.shape, q.codes.data(), scales,
                        workspace.data(), parallel_for),
            Nf4Result::kOk);
  return q;
}

std::vector<float> Dequantize(const Quantized& q, int64_t rows,
                              int64_t columns) {
  std::vector<float> out(rows * columns);
  EXPECT_EQ(
      DequantizeNf4(q.codes.data(), q.view(), rows, columns, q.shape.block_size,
                    0, rows, Dtype::kFloat32, out.data(), columns, SerialFor),
      Nf4Result::kOk);
  return out;
}

std::vector<float> RandomValues(int64_t n, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> x(n);
  for (float& value : x) value = normal(engine);
  return x;
}

std::string Nibbles(const std::vector<uint8_t>& codes) {
  std::string text;
  for (const uint8_t byte : codes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

TEST(Nf4Table, ThresholdsAreMidpoints) {
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(kNf4Thresholds[i], (kNf4Values[i] + kNf4Values[i + 1]) / 2);
  }
}

TEST(DynamicMap, CheckValues) {
  const std::vector<std::pair<int, float>> expected = {
      {0, -0.992968738f},     {1, -0.978906274f},      {63, -0.107031256f},
      {64, -0.0985937491f},   {126, -5.50000038e-07f}, {127, 0.0f},
      {128, 5.50000038e-07f}, {129, 3.25000019e-06f},  {130, 7.7499999e-06f},
      {135, 0.000156250011f}, {190, 0.0985937491f},    {191, 0.107031256f},
      {253, 0.978906274f},    {254, 0.992968738f},     {255, 1.0f}};
  for (const auto& [index, value] : expected) {
    EXPECT_EQ(kDynamicMapSigned[index], value) << index;
  }
  EXPECT_TRUE(
      std::is_sorted(kDynamicMapSigned.begin(), kDynamicMapSigned.end()));
}

TEST(QuantizeNf4, TestVectorRamp) {
  std::vector<float> x(64);
  for (int i = 0; i < 64; ++i) x[i] = static_cast<float>(i - 32) / 32;
  const Quantized q = Quantize(x, 64, false);
  EXPECT_EQ(q.absmax[0], 1.0f);
  EXPECT_EQ(Nibbles(q.codes),
            "000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff");
}

TEST(QuantizeNf4, ValueOnThresholdTakesLowerCode) {
  std::vector<float> x(64, 0.0f);
  x[0] = 1;
  for (int i = 0; i < 15; ++i) {
    x[2 * i + 1] = kNf4Thresholds[i];
    x[2 * i + 2] = std::nextafter(kNf4Thresholds[i], 2.0f);
  }
  const std::string codes = Nibbles(Quantize(x, 64, false).codes);
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(codes[2 * i + 1], "0123456789abcdef"[i]);
    EXPECT_EQ(codes[2 * i + 2], "0123456789abcdef"[i + 1]);
  }
}

// The 8-bit rule through its only door: the scales' scales. Every block holds
// one absmax; with values that sum to zero after centering around 2, residuals
// are the vector's inputs exactly.
TEST(QuantizeNf4, TestVectorDynamicCodes) {
  const std::vector<std::pair<double, int>> expected = {
      {1.0, 255},   {-1.0, 0},  {0.99, 254},   {0.5, 219},
      {-0.5, 35},   {0.1, 190}, {-0.1, 64},    {0.01, 158},
      {0.001, 142}, {0.0, 127}, {0.3333, 207}, {0.9965, 255}};
  std::vector<float> residuals;
  for (const auto& [value, code] : expected) {
    residuals.push_back(static_cast<float>(value));
  }
  std::vector<float> x;
  auto add = [&](float absmax) {
    x.push_back(absmax);
    x.insert(x.end(), 31, 0.0f);
  };
  for (const float r : residuals) add(2 + r);
  for (const float r : residuals) add(2 - r);
  const Quantized q = Quantize(x, 32, true);
  EXPECT_EQ(q.offset, 2.0f);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(q.absmax_codes[i], expected[i].second) << expected[i].first;
  }
}

TEST(QuantizeNf4, NestedCodesAreNearest) {
  const std::vector<float> x = RandomValues(64 * 600 + 17, 3);
  const Quantized plain = Quantize(x, 64, false);
  const Quantized nested = Quantize(x, 64, true);
  EXPECT_EQ(plain.codes, nested.codes);
  for (int64_t b = 0; b < plain.shape.num_blocks(); ++b) {
    const float scale = nested.absmax_scale[b / 256];
    const float wanted = (plain.absmax[b] - nested.offset) * (1.0f / scale);
    float best = 10;
    for (const float value : kDynamicMapSigned) {
      best = std::min(best, std::fabs(value - wanted));
    }
    EXPECT_EQ(std::fabs(kDynamicMapSigned[nested.absmax_codes[b]] - wanted),
              best);
  }
}

TEST(QuantizeNf4, ZeroBlockHasCodeZero) {
  std::vector<float> x(128, 0.0f);
  x[100] = 3;
  const Quantized q = Quantize(x, 64, false);
  EXPECT_TRUE(std::all_of(q.codes.begin(), q.codes.begin() + 32,
                          [](uint8_t c) { return c == 0; }));
  const std::vector<float> back = Dequantize(q, 1, 128);
  EXPECT_EQ(back[0], 0.0f);
  EXPECT_EQ(back[100], 3.0f);
}

TEST(QuantizeNf4, NotANumberTakesCodeZeroAndInfinityKeepsItsScale) {
  std::vector<float> x(64, 1.0f);
  x[5] = std::numeric_limits<float>::quiet_NaN();
  const Quantized nan = Quantize(x, 64, false);
  EXPECT_EQ(nan.absmax[0], 1.0f);
  EXPECT_EQ(nan.codes[2] & 15, 0);
  x[5] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isinf(Quantize(x, 64, false).absmax[0]));
}

TEST(QuantizeNf4, OddTailPadsWithZero) {
  const Quantized q = Quantize({1.0f, -1.0f, 1.0f}, 64, false);
  EXPECT_EQ(Nibbles(q.codes), "f0f7");
}

TEST(QuantizeNf4, SameBytesWithThreads) {
  for (const int block_size : {32, 64, 4096}) {
    const std::vector<float> x = RandomValues(70001, 5);
    const Quantized a = Quantize(x, block_size, true);
    const Quantized b = Quantize(x, block_size, true, ThreadedFor);
    EXPECT_EQ(a.codes, b.codes);
    EXPECT_EQ(a.absmax_codes, b.absmax_codes);
    EXPECT_EQ(a.absmax_scale, b.absmax_scale);
    EXPECT_EQ(a.offset, b.offset);
  }
}

TEST(QuantizeNf4, RejectsBadArguments) {
  std::vector<float> x(64), absmax(2);
  std::vector<uint8_t> codes(32);
  const MutableScales scales{.absmax = absmax.data()};
  for (const int block_size : {0, 16, 48, 8192, -64}) {
    EXPECT_EQ(QuantizeNf4(x.data(), {64, block_size}, codes.data(), scales,
                          nullptr, SerialFor),
              Nf4Result::kInvalidArgument);
  }
  EXPECT_EQ(
      QuantizeNf4(nullptr, {64, 64}, codes.data(), scales, nullptr, SerialFor),
      Nf4Result::kInvalidArgument);
  EXPECT_EQ(
      QuantizeNf4(x.data(), {64, 64}, codes.data(), {}, nullptr, SerialFor),
      Nf4Result::kInvalidArgument);
  EXPECT_EQ(DequantizeNf4(codes.data(), {.absmax = absmax.data()}, 2, 32, 64, 1,
                          3, Dtype::kFloat32, x.data(), 32, SerialFor),
            Nf4Result::kInvalidArgument);
}

TEST(DequantizeNf4, FollowsTheFormula) {
  const std::vector<float> x = RandomValues(7 * 101, 7);
  for (const bool nested : {false, true}) {
    const Quantized q = Quantize(x, 64, nested);
    const std::vector<float> back = Dequantize(q, 7, 101);
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t block = i / 64;
      volatile float scale = 0;
      if (nested) {
        volatile float product = kDynamicMapSigned[q.absmax_codes[block]] *
                                 q.absmax_scale[block / 256];
        scale = product + q.offset;
      } else {
        scale = q.absmax[block];
      }
      const int code = i % 2 == 0 ? q.codes[i / 2] >> 4 : q.codes[i / 2] & 15;
      EXPECT_EQ(back[i], kNf4Values[code] * scale);
      // Half the widest gap between values, and the scale's own error.
      EXPECT_NEAR(back[i], x[i], 0.16f * scale + 0.004f);
    }
  }
}

// Rows of odd length: blocks span rows and rows begin inside a byte.
TEST(DequantizeNf4, SubRangeWithLeadingDimension) {
  const int64_t rows = 13, columns = 37, stride = 41;
  const Quantized q = Quantize(RandomValues(rows * columns, 9), 32, true);
  const std::vector<float> whole = Dequantize(q, rows, columns);
  for (const ParallelFor& parallel_for :
       {ParallelFor(SerialFor), ParallelFor(ThreadedFor)}) {
    std::vector<float> out(5 * stride, -7.0f);
    ASSERT_EQ(DequantizeNf4(q.codes.data(), q.view(), rows, columns, 32, 4, 9,
                            Dtype::kFloat32, out.data(), stride, parallel_for),
              Nf4Result::kOk);
    for (int64_t r = 0; r < 5; ++r) {
      for (int64_t c = 0; c < stride; ++c) {
        const float wanted = c < columns ? whole[(r + 4) * columns + c] : -7.0f;
        EXPECT_EQ(out[r * stride + c], wanted);
      }
    }
  }
}

float FromHalf(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int mantissa = half & 1023;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(1024.0f + mantissa, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

TEST(DequantizeNf4, RoundsOnceToTheNarrowTypes) {
  std::vector<float> x = RandomValues(640, 11);
  // Subnormal halves too.
  for (int i = 64; i < 128; ++i) x[i] *= 1e-4f;
  const Quantized q = Quantize(x, 64, false);
  const std::vector<float> exact = Dequantize(q, 10, 64);
  std::vector<uint16_t> bf16(640), fp16(640);
  DequantizeNf4(q.codes.data(), q.view(), 10, 64, 64, 0, 10, Dtype::kBfloat16,
                bf16.data(), 64, SerialFor);
  DequantizeNf4(q.codes.data(), q.view(), 10, 64, 64, 0, 10, Dtype::kFloat16,
                fp16.data(), 64, SerialFor);
  for (int i = 0; i < 640; ++i) {
    const float as_bf16 = std::bit_cast<float>(uint32_t{bf16[i]} << 16);
    EXPECT_LE(std::fabs(as_bf16 - exact[i]), std::fabs(exact[i]) * 0x1p-8f);
    const float spacing =
        std::max(std::fabs(exact[i]) * 0x1p-10f, 0x1p-24f) / 2;
    EXPECT_LE(std::fabs(FromHalf(fp16[i]) - exact[i]), spacing);
  }
}

}  // namespace
}  // namespace qlora::kernels
