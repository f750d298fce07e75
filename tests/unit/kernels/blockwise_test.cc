// The quantization rules, on the reference: published vectors, ties, and what
// is not a number.
#include "kernels/blockwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/backend.h"

namespace qlora::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Several real threads with uneven ranges.
void ThreadedFor(int64_t n, int64_t grain, RangeBody body) {
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < n;) {
    const int64_t end =
        threads.size() == 3 ? n : std::min(n, begin + 3 * grain);
    threads.emplace_back([body, begin, end] { body(begin, end); });
    begin = end;
  }
  for (std::thread& thread : threads) thread.join();
}

struct Quantized {
  FourBitType type;
  BlockwiseShape shape;
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  std::vector<uint8_t> absmax_codes;
  std::vector<float> absmax_scale;
  float offset = 0;
  bool operator==(const Quantized& other) const {
    return codes == other.codes && absmax == other.absmax &&
           absmax_codes == other.absmax_codes &&
           absmax_scale == other.absmax_scale && offset == other.offset;
  }
  ScalesView view() const {
    if (!absmax.empty()) return {.absmax = absmax.data()};
    return {.absmax_codes = absmax_codes.data(),
            .absmax_scale = absmax_scale.data(),
            .offset = &offset};
  }
};

struct Options {
  FourBitType type = FourBitType::kNf4;
  int block_size = 64;
  bool nested = false;
};

Quantized Quantized4(const std::vector<float>& x, const Options& options,
                     const Backend& backend = ReferenceBackend(),
                     const ParallelFor& parallel_for = SerialFor) {
  Quantized q;
  q.type = options.type;
  q.shape = {static_cast<int64_t>(x.size()), options.block_size};
  q.codes.resize(q.shape.code_bytes());
  Quantize op{.type = q.type,
              .x = x.data(),
              .shape = q.shape,
              .codes = q.codes.data(),
              .scales = {}};
  if (options.nested) {
    q.absmax_codes.resize(q.shape.num_blocks());
    q.absmax_scale.resize(q.shape.num_nested_blocks());
    op.scales = {.absmax_codes = q.absmax_codes.data(),
                 .absmax_scale = q.absmax_scale.data(),
                 .offset = &q.offset};
  } else {
    q.absmax.resize(q.shape.num_blocks());
    op.scales = {.absmax = q.absmax.data()};
  }
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<Line> workspace(backend.WorkspaceBytes(op, 1) / 64 + 1);
  EXPECT_EQ(backend.Run({.parallel_for = parallel_for,
                         .workspace = workspace.data(),
                         .workspace_bytes =
                             static_cast<int64_t>(workspace.size()) * 64},
                        op),
            Result::kOk);
  return q;
}

std::vector<float> Dequantized(const Quantized& q, int64_t rows,
                               int64_t columns) {
  std::vector<float> out(rows * columns);
  EXPECT_EQ(ReferenceBackend().Run(
                {}, Dequantize{.type = q.type,
                               .codes = q.codes.data(),
                               .scales = q.view(),
                               .rows = rows,
                               .block_size = q.shape.block_size,
                               .out = FloatView(out.data(), rows, columns)}),
            Result::kOk);
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

std::vector<uint8_t> DynamicCodes(DynamicMap map, const std::vector<float>& x,
                                  float* scale) {
  std::vector<uint8_t> codes(x.size());
  EXPECT_EQ(
      ReferenceBackend().Run({}, QuantizeDynamic{.map = map,
                                                 .x = x.data(),
                                                 .shape = {std::ssize(x), 64},
                                                 .codes = codes.data(),
                                                 .scale = scale}),
      Result::kOk);
  return codes;
}

TEST(Nf4Table, ThresholdsAreMidpoints) {
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(kNf4Thresholds[i], (kNf4Values[i] + kNf4Values[i + 1]) / 2);
  }
}

TEST(Fp4Table, ThresholdsLieBetweenNeighbours) {
  std::vector<float> magnitudes(kFp4Values, kFp4Values + 8);
  std::sort(magnitudes.begin(), magnitudes.end());
  for (int i = 0; i < 7; ++i) {
    EXPECT_NEAR(kFp4Thresholds[i], (magnitudes[i] + magnitudes[i + 1]) / 2,
                4e-7f);
    EXPECT_EQ(kFp4Values[i + 8], -kFp4Values[i]);
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
  EXPECT_EQ(kDynamicMapUnsigned[0], 0.0f);
  EXPECT_EQ(kDynamicMapUnsigned[1], 0x1.5cf754p-22f);
  EXPECT_EQ(kDynamicMapUnsigned[254], 0.996484399f);
  EXPECT_EQ(kDynamicMapUnsigned[255], 1.0f);
  EXPECT_TRUE(std::ranges::is_sorted(kDynamicMapSigned));
  EXPECT_TRUE(std::ranges::is_sorted(kDynamicMapUnsigned));
}

// Where FP4's vector is written down it has 66 digits, a 7 and a 5 too many;
// these 64 follow the rule.
TEST(QuantizeTest, TestVectorRamp) {
  std::vector<float> x(64);
  for (int i = 0; i < 64; ++i) x[i] = static_cast<float>(i - 32) / 32;
  const Quantized nf4 = Quantized4(x, {});
  EXPECT_EQ(nf4.absmax[0], 1.0f);
  EXPECT_EQ(Nibbles(nf4.codes),
            "000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff");
  EXPECT_EQ(Nibbles(Quantized4(x, {.type = FourBitType::kFp4}).codes),
            "bbbbbbaaaaaaaadddddccccfffeeee9901166667774444555552222222233333");
}

TEST(QuantizeTest, Nf4ValueOnThresholdTakesLowerCode) {
  std::vector<float> x(64, 0.0f);
  x[0] = 1;
  for (int i = 0; i < 15; ++i) {
    x[2 * i + 1] = kNf4Thresholds[i];
    x[2 * i + 2] = std::nextafter(kNf4Thresholds[i], 2.0f);
  }
  const std::string codes = Nibbles(Quantized4(x, {}).codes);
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(codes[2 * i + 1], "0123456789abcdef"[i]);
    EXPECT_EQ(codes[2 * i + 2], "0123456789abcdef"[i + 1]);
  }
}

TEST(QuantizeTest, Fp4ValueOnThresholdTakesSmallerMagnitude) {
  std::vector<float> x(64, 0.0f);
  x[0] = 1;
  for (int i = 0; i < 7; ++i) {
    x[4 * i + 1] = kFp4Thresholds[i];
    x[4 * i + 2] = std::nextafter(kFp4Thresholds[i], 2.0f);
    x[4 * i + 3] = -x[4 * i + 1];
    x[4 * i + 4] = -x[4 * i + 2];
  }
  x[30] = -0.0f;
  x[31] = -1e-30f;
  const std::string codes =
      Nibbles(Quantized4(x, {.type = FourBitType::kFp4}).codes);
  const std::string order = "01674523", negative = "89efcdab";
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(codes[4 * i + 1], order[i]);
    EXPECT_EQ(codes[4 * i + 2], order[i + 1]);
    EXPECT_EQ(codes[4 * i + 3], negative[i]);
    EXPECT_EQ(codes[4 * i + 4], negative[i + 1]);
  }
  EXPECT_EQ(codes[30], '0');
  EXPECT_EQ(codes[31], '8');
}

TEST(QuantizeTest, NestedCodesAreNearest) {
  const std::vector<float> x = RandomValues(64 * 600 + 17, 3);
  const Quantized plain = Quantized4(x, {});
  const Quantized nested = Quantized4(x, {.nested = true});
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

TEST(QuantizeTest, ZeroBlockHasCodeZero) {
  std::vector<float> x(128, 0.0f);
  x[100] = 3;
  for (const FourBitType type : {FourBitType::kNf4, FourBitType::kFp4}) {
    const Quantized q = Quantized4(x, {.type = type});
    EXPECT_TRUE(std::all_of(q.codes.begin(), q.codes.begin() + 32,
                            [](uint8_t c) { return c == 0; }));
    const std::vector<float> back = Dequantized(q, 1, 128);
    EXPECT_EQ(back[0], 0.0f);
    EXPECT_EQ(back[100], 3.0f);
  }
}

TEST(QuantizeTest, NotANumberTakesCodeZeroAndInfinityKeepsItsScale) {
  for (const FourBitType type : {FourBitType::kNf4, FourBitType::kFp4}) {
    std::vector<float> x(64, 1.0f);
    x[5] = kNan;
    const Quantized nan = Quantized4(x, {.type = type});
    EXPECT_EQ(nan.absmax[0], 1.0f);
    EXPECT_EQ(nan.codes[2] & 15, 0);
    x[5] = kInfinity;
    EXPECT_TRUE(std::isinf(Quantized4(x, {.type = type}).absmax[0]));
  }
}

TEST(QuantizeTest, OddTailPadsWithZero) {
  EXPECT_EQ(Nibbles(Quantized4({1.0f, -1.0f, 1.0f}, {}).codes), "f0f7");
  EXPECT_EQ(
      Nibbles(
          Quantized4({1.0f, -1.0f, 1.0f}, {.type = FourBitType::kFp4}).codes),
      "3b30");
}

// bfloat16 and float16 are what their float32 values are.
TEST(QuantizeTest, NarrowTypesAreTheirValues) {
  const std::vector<float> values = {1.0f, -0.5f, 0.25f, 0.125f};
  const uint16_t bf16[] = {0x3f80, 0xbf00, 0x3e80, 0x3e00};
  const uint16_t fp16[] = {0x3c00, 0xb800, 0x3400, 0x3000};
  const Quantized expected = Quantized4(values, {});
  for (const bool half : {false, true}) {
    std::vector<uint8_t> codes(2);
    float absmax = 0;
    ASSERT_EQ(
        ReferenceBackend().Run(
            {}, Quantize{.x = half ? fp16 : bf16,
                         .dtype = half ? Dtype::kFloat16 : Dtype::kBfloat16,
                         .shape = {4, 64},
                         .codes = codes.data(),
                         .scales = {.absmax = &absmax}}),
        Result::kOk);
    EXPECT_EQ(codes, expected.codes);
    EXPECT_EQ(absmax, 1.0f);
  }
}

TEST(QuantizeTest, SameBytesWithThreads) {
  const std::vector<float> x = RandomValues(70001, 5);
  for (const Backend* backend : CpuBackends()) {
    for (const int block_size : {32, 64, 4096}) {
      const Options options{.block_size = block_size, .nested = true};
      EXPECT_EQ(Quantized4(x, options),
                Quantized4(x, options, *backend, ThreadedFor));
    }
  }
}

TEST(DequantizeTest, FollowsTheFormula) {
  const std::vector<float> x = RandomValues(7 * 101, 7);
  for (const FourBitType type : {FourBitType::kNf4, FourBitType::kFp4}) {
    for (const bool nested : {false, true}) {
      const Quantized q = Quantized4(x, {.type = type, .nested = nested});
      const std::vector<float> back = Dequantized(q, 7, 101);
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
        EXPECT_EQ(back[i], FourBitValues(type)[code] * scale);
        // Half the widest gap between values, and the scale's own error.
        EXPECT_NEAR(back[i], x[i], 0.17f * scale + 0.004f);
      }
    }
  }
}

// Rows of odd length: blocks span rows and rows begin inside a byte.
TEST(DequantizeTest, SubRangeWithLeadingDimension) {
  const int64_t rows = 13, columns = 37, stride = 41;
  const Quantized q = Quantized4(RandomValues(rows * columns, 9),
                                 {.block_size = 32, .nested = true});
  const std::vector<float> whole = Dequantized(q, rows, columns);
  for (const Backend* backend : CpuBackends()) {
    std::vector<float> out(5 * stride, -7.0f);
    ASSERT_EQ(backend->Run({.parallel_for = ThreadedFor},
                           Dequantize{.codes = q.codes.data(),
                                      .scales = q.view(),
                                      .rows = rows,
                                      .block_size = 32,
                                      .row_begin = 4,
                                      .out = {out.data(), Dtype::kFloat32, 5,
                                              columns, stride}}),
              Result::kOk);
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

TEST(DequantizeTest, RoundsOnceToTheNarrowTypes) {
  std::vector<float> x = RandomValues(640, 11);
  // Subnormal halves too.
  for (int i = 64; i < 128; ++i) x[i] *= 1e-4f;
  const Quantized q = Quantized4(x, {});
  const std::vector<float> exact = Dequantized(q, 10, 64);
  std::vector<uint16_t> bf16(640), fp16(640);
  for (const Dtype dtype : {Dtype::kBfloat16, Dtype::kFloat16}) {
    auto& out = dtype == Dtype::kBfloat16 ? bf16 : fp16;
    ASSERT_EQ(ReferenceBackend().Run(
                  {}, Dequantize{.codes = q.codes.data(),
                                 .scales = q.view(),
                                 .rows = 10,
                                 .out = MakeView(out.data(), dtype, 10, 64)}),
              Result::kOk);
  }
  for (int i = 0; i < 640; ++i) {
    const float as_bf16 = std::bit_cast<float>(uint32_t{bf16[i]} << 16);
    EXPECT_LE(std::fabs(as_bf16 - exact[i]), std::fabs(exact[i]) * 0x1p-8f);
    const float spacing =
        std::max(std::fabs(exact[i]) * 0x1p-10f, 0x1p-24f) / 2;
    EXPECT_LE(std::fabs(FromHalf(fp16[i]) - exact[i]), spacing);
  }
}

TEST(QuantizeDynamicTest, TestVector) {
  const std::vector<std::pair<double, int>> expected = {
      {1.0, 255},  {-1.0, 0},     {0.9965, 255}, {0.99, 254},  {0.5, 219},
      {-0.5, 35},  {0.1, 190},    {-0.1, 64},    {0.01, 158},  {0.001, 142},
      {1e-6, 128}, {2.5e-7, 127}, {0.0, 127},    {0.3333, 207}};
  std::vector<float> x;
  for (const auto& pair : expected) {
    x.push_back(static_cast<float>(pair.first));
  }
  float scale = 0;
  const std::vector<uint8_t> codes =
      DynamicCodes(DynamicMap::kSigned, x, &scale);
  EXPECT_EQ(scale, 1.0f);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(codes[i], expected[i].second) << expected[i].first;
  }
}

TEST(QuantizeDynamicTest, UnsignedMapTakesTheNearest) {
  std::vector<float> x = RandomValues(64, 13);
  for (float& value : x) value *= value;
  float scale = 0;
  const std::vector<uint8_t> codes =
      DynamicCodes(DynamicMap::kUnsigned, x, &scale);
  for (size_t i = 0; i < x.size(); ++i) {
    const float wanted = x[i] * (1.0f / scale);
    for (const float value : kDynamicMapUnsigned) {
      EXPECT_LE(std::fabs(kDynamicMapUnsigned[codes[i]] - wanted),
                std::fabs(value - wanted));
    }
  }
}

TEST(QuantizeDynamicTest, ZeroBlockAndNotANumberTakeCodeZero) {
  for (const DynamicMap map : {DynamicMap::kSigned, DynamicMap::kUnsigned}) {
    float scale = 1;
    EXPECT_EQ(DynamicCodes(map, std::vector<float>(3, 0.0f), &scale),
              std::vector<uint8_t>(3, 0));
    EXPECT_EQ(scale, 0.0f);
    EXPECT_EQ(DynamicCodes(map, {kNan, 1.0f}, &scale),
              (std::vector<uint8_t>{0, 255}));
    EXPECT_EQ(scale, 1.0f);
  }
}

TEST(QuantizeInt8Test, FollowsTheFormula) {
  // 0.1 is not a float16: it is rounded first.
  const std::vector<float> x = {1.0f, -0.5f, 0.1f, kNan, 0.0f, 0.0f,
                                0.0f, 0.0f,  7e4f, 2.0f, 0.0f, 0.0f};
  std::vector<int8_t> codes(12);
  std::vector<float> scale(3), back(12);
  ASSERT_EQ(ReferenceBackend().Run(
                {}, QuantizeInt8Rows{.x = FloatView(x.data(), 3, 4),
                                     .codes = codes.data(),
                                     .scale = scale.data()}),
            Result::kOk);
  EXPECT_EQ(codes,
            (std::vector<int8_t>{127, -64, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(scale, (std::vector<float>{1.0f, 0.0f, kInfinity}));
  scale[2] = 0.5f;
  ASSERT_EQ(ReferenceBackend().Run(
                {}, DequantizeInt8Rows{.codes = codes.data(),
                                       .scale = scale.data(),
                                       .out = FloatView(back.data(), 3, 4)}),
            Result::kOk);
  EXPECT_EQ(back[0], 127.0f * 7.874015718698502e-3f);
  EXPECT_EQ(back[1], -64.0f * 7.874015718698502e-3f);
}

TEST(QuantizeTest, WorkspaceOfBadArguments_IsNone) {
  uint8_t code = 0;
  float scale = 0;
  const auto bytes = [&](int64_t n, int block_size) {
    return CpuBackends().front()->WorkspaceBytes(
        Quantize{.shape = {n, block_size},
                 .scales = {.absmax_codes = &code,
                            .absmax_scale = &scale,
                            .offset = &scale}},
        1);
  };
  EXPECT_EQ(bytes(65, 64), 8);
  EXPECT_EQ(bytes(65, 0), 0);
  EXPECT_EQ(bytes(-65, 64), 0);
  EXPECT_EQ(bytes(INT64_MAX, 64), 0);
}

TEST(BackendTest, AbsentDevices_SayWhy) {
  EXPECT_EQ(CudaBackend() == nullptr, !WhyNoCuda().empty());
  EXPECT_EQ(MetalBackend() == nullptr, !WhyNoMetal().empty());
}

}  // namespace
}  // namespace qlora::kernels
