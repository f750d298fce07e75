// Quantization by every tested backend against the reference, over random
// shapes with tails, strides and sub-ranges: byte for byte, and nothing around.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/unit/kernels/guarded.h"
#include "tests/unit/kernels/rejection.h"
#include "tests/unit/kernels/tested_backends.h"

namespace qlora::kernels {
namespace {

constexpr int kCases = 2500;
constexpr Dtype kTypes[] = {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16};

// The ranges of several threads, the last first.
void BackwardsFor(int64_t n, int64_t grain, RangeBody body) {
  for (int64_t part = (n + grain - 1) / grain; part-- > 0;) {
    body(part * grain, std::min(n, (part + 1) * grain));
  }
}

struct Random {
  std::mt19937 engine;
  explicit Random(int seed) : engine(seed) {}

  int64_t Below(int64_t n) { return static_cast<int64_t>(engine() % n); }
  bool Once(int64_t in) { return Below(in) == 0; }

  struct Rows {
    int64_t rows, columns;
  };
  // Now and then more of either than a grid of the emulated device reaches at
  // once.
  Rows AnyRows(int64_t below) {
    if (Once(300)) return {Below(3), 4000 + Below(9000)};
    if (Once(70)) return {20 + Below(280), 1 + Below(70)};
    return {Below(below), 1 + Below(Once(20) ? 600 : 200)};
  }
  FourBitType Type() { return Once(2) ? FourBitType::kNf4 : FourBitType::kFp4; }
  DynamicMap Map() {
    return Once(2) ? DynamicMap::kSigned : DynamicMap::kUnsigned;
  }

  // Blocks from `least` to 4096 elements.
  BlockwiseShape Shape(int least) {
    int block_size = 4096 >> Below(8);
    block_size = std::max(block_size, least);
    if (Once(60)) return {0, block_size};
    const int64_t limit = Once(2) ? 300 : 9000;
    return {Once(7) ? block_size * (1 + Below(4)) : 1 + Below(limit),
            block_size};
  }

  // From subnormal to large, with the values that have rules of their own.
  std::vector<float> Values(int64_t n) {
    std::normal_distribution<float> normal(0, 0.02f);
    const float scale = std::ldexp(1.0f, static_cast<int>(Below(250)) - 140);
    std::vector<float> x(n);
    for (float& value : x) value = normal(engine) * scale;
    constexpr float kSpecial[] = {std::numeric_limits<float>::quiet_NaN(),
                                  std::numeric_limits<float>::infinity(),
                                  -std::numeric_limits<float>::infinity(),
                                  -0.0f, 1e-42f};
    if (n == 0) return x;
    for (int64_t i = Below(4); i > 1; --i) x[Below(n)] = kSpecial[Below(5)];
    if (Once(11)) std::fill_n(x.begin(), std::min<int64_t>(n, 64), 0.0f);
    return x;
  }

  // The bytes of n values of a type. Of a narrow type every pattern.
  std::vector<uint8_t> Elements(int64_t n, Dtype dtype) {
    std::vector<uint8_t> bytes(n * ElementSize(dtype) + 1);
    if (dtype == Dtype::kFloat32) {
      const std::vector<float> x = Values(n);
      if (n > 0) std::memcpy(bytes.data(), x.data(), n * sizeof(float));
      return bytes;
    }
    const auto exponents = static_cast<uint16_t>(Once(3) ? 0xffff : 0xbfff);
    for (int64_t i = 0; i < n; ++i) {
      const auto bits = static_cast<uint16_t>(engine() & exponents);
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
    return bytes;
  }

  Launch Launched(std::vector<double>& workspace) {
    Launch launch;
    if (Once(2)) launch.parallel_for = BackwardsFor;
    launch.threads = 2;
    launch.workspace = workspace.data();
    const auto odd = reinterpret_cast<uintptr_t>(launch.workspace) % 64;
    launch.workspace = workspace.data() + (64 - odd) % 64 / sizeof(double);
    launch.workspace_bytes =
        static_cast<int64_t>(workspace.size() * sizeof(double)) - 64;
    return launch;
  }
};

class BlockwiseBackendTest : public testing::TestWithParam<const Backend*> {
 protected:
  // ops[0] by the reference, ops[1] by the backend; what the workspace holds
  // does not matter.
  template <typename Op>
  void RunBoth(Random& random, const Op (&ops)[2]) {
    const int64_t bytes = std::max(ReferenceBackend().WorkspaceBytes(ops[0], 2),
                                   GetParam()->WorkspaceBytes(ops[1], 2));
    std::vector<double> workspace(bytes / 8 + 16, NAN);
    const Launch launch = random.Launched(workspace);
    ASSERT_EQ(ReferenceBackend().Run(launch, ops[0]), Result::kOk);
    ASSERT_EQ(GetParam()->Run(launch, ops[1]), Result::kOk);
  }

  void CompareQuantize(Random& random, const BlockwiseShape& shape, bool nest) {
    Quantize ops[2];
    Guarded codes[] = {Guarded(shape.code_bytes()),
                       Guarded(shape.code_bytes())};
    Guarded scales[] = {Guarded(shape.num_blocks() * 4),
                        Guarded(shape.num_blocks() * 4)};
    Guarded nested[] = {Guarded(shape.num_nested_blocks() * 4),
                        Guarded(shape.num_nested_blocks() * 4)};
    Guarded offset[] = {Guarded(4), Guarded(4)};
    const Dtype dtype = kTypes[random.Below(3)];
    const std::vector<uint8_t> x = random.Elements(shape.num_elements, dtype);
    const FourBitType type = random.Type();
    for (int i : {0, 1}) {
      ops[i] = {.type = type,
                .x = x.data(),
                .dtype = dtype,
                .shape = shape,
                .codes = codes[i].as<uint8_t>(),
                .scales = {}};
      if (nest) {
        ops[i].scales = {.absmax_codes = scales[i].as<uint8_t>(),
                         .absmax_scale = nested[i].as<float>(),
                         .offset = offset[i].as<float>()};
      } else {
        ops[i].scales = {.absmax = scales[i].as<float>()};
      }
    }
    RunBoth(random, ops);
    ASSERT_TRUE(codes[0] == codes[1]);
    ASSERT_TRUE(scales[0] == scales[1]);
    ASSERT_TRUE(nested[0] == nested[1] && offset[0] == offset[1]);
  }
};

TEST_P(BlockwiseBackendTest, Quantize) {
  for (int seed = 0; seed < CaseCount(kCases); ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const BlockwiseShape shape = random.Shape(32);
    CompareQuantize(random, shape, random.Once(2));
    if (HasFatalFailure()) return;
  }
}

// Every kernel of a device strides: each of the 16 blocks of the emulated one
// has 8 warps, and each of those a nested block.
TEST_P(BlockwiseBackendTest, QuantizeManyBlocks) {
  Random random(1);
  CompareQuantize(random, {16 * 8 * kNestedBlockSize * 32 + 77, 32}, true);
}

TEST_P(BlockwiseBackendTest, QuantizeNothing_GivesAnOffsetOfZero) {
  Random random(1);
  uint8_t code = 9;
  float scale = 9, offsets[] = {9, 9};
  Quantize ops[2];
  for (int i : {0, 1}) {
    ops[i] = {.x = nullptr,
              .shape = {0, 64},
              .scales = {.absmax_codes = &code,
                         .absmax_scale = &scale,
                         .offset = &offsets[i]}};
  }
  RunBoth(random, ops);
  EXPECT_EQ(code, 9);
  EXPECT_EQ(scale, 9);
  EXPECT_EQ(offsets[0], 0);
  EXPECT_EQ(offsets[1], 0);
}

TEST_P(BlockwiseBackendTest, Dequantize) {
  for (int seed = 0; seed < CaseCount(kCases); ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    auto [rows, columns] = random.AnyRows(40);
    // More blocks than share a nested scale.
    if (random.Once(12)) columns = 500 + random.Below(2000);
    const BlockwiseShape shape{rows * columns, 4096 >> random.Below(8)};
    std::vector<uint8_t> codes(shape.code_bytes() + 1),
        absmax_codes(shape.num_blocks() + 1);
    for (uint8_t& code : codes) code = random.Below(256);
    for (uint8_t& code : absmax_codes) code = random.Below(256);
    const std::vector<float> scales = random.Values(shape.num_blocks() + 1);
    ScalesView view{.absmax = scales.data()};
    if (random.Once(2)) {
      view = {.absmax_codes = absmax_codes.data(),
              .absmax_scale = scales.data(),
              .offset = &scales[shape.num_blocks()]};
    }
    const int64_t begin = random.Below(rows + 1);
    const int64_t count = random.Below(rows - begin + 1);
    const int64_t stride = columns + random.Below(2) * random.Below(9);
    const Dtype dtype = kTypes[random.Below(3)];
    const int64_t size = ElementSize(dtype);
    const int64_t shift = random.Below(2) * random.Below(32) * size;
    Guarded out[] = {Guarded(count * stride * size, shift),
                     Guarded(count * stride * size, shift)};
    Dequantize ops[2];
    const FourBitType type = random.Type();
    for (int i : {0, 1}) {
      ops[i] = {.type = type,
                .codes = codes.data(),
                .scales = view,
                .rows = rows,
                .block_size = shape.block_size,
                .row_begin = begin,
                .out = {out[i].as<void>(), dtype, count, columns, stride}};
    }
    RunBoth(random, ops);
    ASSERT_TRUE(out[0] == out[1]);
  }
}

// From the size on where results are written around the caches; rows of lines
// with plain scales, and rows that begin anywhere with nested ones.
TEST_P(BlockwiseBackendTest, DequantizeMoreThanTheCaches) {
  Random random(1);
  for (const int64_t columns : {4096, 4095}) {
    for (const Dtype dtype : kTypes) {
      const int64_t rows = (18 << 20) / (columns * ElementSize(dtype));
      const BlockwiseShape shape{rows * columns, 64};
      std::vector<uint8_t> codes(shape.code_bytes());
      for (uint8_t& code : codes) code = random.engine() & 255;
      const std::vector<float> scales = random.Values(shape.num_blocks());
      ScalesView view{.absmax = scales.data()};
      if (columns == 4095) {
        view = {.absmax_codes = codes.data(),
                .absmax_scale = scales.data(),
                .offset = &scales.back()};
      }
      const int64_t bytes = rows * columns * ElementSize(dtype);
      Guarded out[] = {Guarded(bytes), Guarded(bytes)};
      Dequantize ops[2];
      for (int i : {0, 1}) {
        ops[i] = {.codes = codes.data(),
                  .scales = view,
                  .rows = rows,
                  .out = MakeView(out[i].as<void>(), dtype, rows, columns)};
      }
      RunBoth(random, ops);
      ASSERT_TRUE(out[0] == out[1]);
    }
  }
}

TEST_P(BlockwiseBackendTest, QuantizeInt8Rows) {
  for (int seed = 0; seed < CaseCount(kCases); ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const auto [rows, columns] = random.AnyRows(12);
    const int64_t stride = columns + random.Below(2) * random.Below(9);
    const Dtype dtype = kTypes[random.Below(3)];
    std::vector<uint8_t> x = random.Elements(rows * stride, dtype);
    Guarded codes[] = {Guarded(rows * columns), Guarded(rows * columns)};
    Guarded scale[] = {Guarded(rows * 4), Guarded(rows * 4)};
    QuantizeInt8Rows ops[2];
    for (int i : {0, 1}) {
      ops[i] = {.x = {x.data(), dtype, rows, columns, stride},
                .codes = codes[i].as<int8_t>(),
                .scale = scale[i].as<float>()};
    }
    RunBoth(random, ops);
    ASSERT_TRUE(codes[0] == codes[1] && scale[0] == scale[1]);
  }
}

TEST_P(BlockwiseBackendTest, DequantizeInt8Rows) {
  for (int seed = 0; seed < CaseCount(kCases); ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const auto [rows, columns] = random.AnyRows(12);
    const int64_t stride = columns + random.Below(2) * random.Below(9);
    std::vector<int8_t> codes(rows * columns + 1);
    for (int8_t& code : codes) code = static_cast<int8_t>(random.Below(256));
    const std::vector<float> scale = random.Values(rows + 1);
    const Dtype dtype = kTypes[random.Below(3)];
    const int64_t bytes = rows * stride * ElementSize(dtype);
    Guarded out[] = {Guarded(bytes), Guarded(bytes)};
    DequantizeInt8Rows ops[2];
    for (int i : {0, 1}) {
      ops[i] = {.codes = codes.data(),
                .scale = scale.data(),
                .out = {out[i].as<void>(), dtype, rows, columns, stride}};
    }
    RunBoth(random, ops);
    ASSERT_TRUE(out[0] == out[1]);
  }
}

// Values at and beside the midpoints of the map, and anywhere.
std::vector<float> DynamicValues(Random& random, DynamicMap map, int64_t n) {
  std::vector<float> x = random.Values(n);
  if (random.Once(2)) return x;
  const float* values = DynamicMapValues(map);
  for (float& value : x) {
    const int64_t i = random.Below(255);
    value = (values[i] + values[i + 1]) * 0.5f;
    const int64_t side = random.Below(3);
    if (side > 0) value = std::nextafter(value, side == 1 ? -2.0f : 2.0f);
  }
  for (size_t i = 0; i < x.size(); i += 64) x[i] = 1;
  return x;
}

TEST_P(BlockwiseBackendTest, QuantizeDynamic) {
  for (int seed = 0; seed < CaseCount(kCases); ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const BlockwiseShape shape = random.Shape(64);
    const DynamicMap map = random.Map();
    const std::vector<float> x = DynamicValues(random, map, shape.num_elements);
    Guarded codes[] = {Guarded(shape.num_elements),
                       Guarded(shape.num_elements)};
    Guarded scale[] = {Guarded(shape.num_blocks() * 4),
                       Guarded(shape.num_blocks() * 4)};
    QuantizeDynamic ops[2];
    for (int i : {0, 1}) {
      ops[i] = {.map = map,
                .x = x.data(),
                .shape = shape,
                .codes = codes[i].as<uint8_t>(),
                .scale = scale[i].as<float>()};
    }
    RunBoth(random, ops);
    ASSERT_TRUE(codes[0] == codes[1] && scale[0] == scale[1]);
  }
}

TEST_P(BlockwiseBackendTest, DequantizeDynamic) {
  for (int seed = 0; seed < CaseCount(kCases); ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const BlockwiseShape shape = random.Shape(64);
    const DynamicMap map = random.Map();
    std::vector<uint8_t> codes(shape.num_elements + 1);
    for (uint8_t& code : codes) code = random.Below(256);
    const std::vector<float> scale = random.Values(shape.num_blocks() + 1);
    Guarded out[] = {Guarded(shape.num_elements * 4),
                     Guarded(shape.num_elements * 4)};
    DequantizeDynamic ops[2];
    for (int i : {0, 1}) {
      ops[i] = {.map = map,
                .codes = codes.data(),
                .scale = scale.data(),
                .shape = shape,
                .out = out[i].as<float>()};
    }
    RunBoth(random, ops);
    ASSERT_TRUE(out[0] == out[1]);
  }
}

TEST(QuantizeTest, BadArguments_AreRejected) {
  const float x[64] = {};
  uint8_t codes[32];
  float absmax[2];
  const Quantize good{
      .x = x, .shape = {64, 64}, .codes = codes, .scales = {.absmax = absmax}};
  ExpectAccepted(good);
  const auto rejected = [&](auto change) {
    Quantize op = good;
    change(op);
    ExpectRejected(op);
  };
  for (const int block_size : {0, 16, 48, 8192, -64}) {
    rejected([=](Quantize& op) { op.shape.block_size = block_size; });
  }
  rejected([](Quantize& op) { op.x = nullptr; });
  rejected([](Quantize& op) { op.codes = nullptr; });
  rejected([](Quantize& op) { op.shape.num_elements = -1; });
  rejected([](Quantize& op) { op.scales = {}; });
  rejected([&](Quantize& op) { op.scales.offset = absmax; });
  for (const int unknown : {-1, 3}) {
    rejected(
        [=](Quantize& op) { op.type = static_cast<FourBitType>(unknown); });
    rejected([=](Quantize& op) { op.dtype = static_cast<Dtype>(unknown); });
  }
  Quantize nested = good;
  nested.scales = {
      .absmax_codes = codes, .absmax_scale = absmax, .offset = &absmax[1]};
  ExpectRejected(nested);  // no workspace
  ExpectAccepted(nested);
}

TEST(DequantizeTest, BadArguments_AreRejected) {
  float out[64], absmax[1] = {};
  const uint8_t codes[32] = {};
  const Dequantize good{.codes = codes,
                        .scales = {.absmax = absmax},
                        .rows = 2,
                        .out = FloatView(out, 2, 32)};
  ExpectAccepted(good);
  const auto rejected = [&](auto change) {
    Dequantize op = good;
    change(op);
    ExpectRejected(op);
  };
  rejected([](Dequantize& op) { op.codes = nullptr; });
  rejected([](Dequantize& op) { op.row_begin = 1; });
  rejected([](Dequantize& op) { op.row_begin = -1; });
  rejected([](Dequantize& op) { op.out.stride = 31; });
  rejected([](Dequantize& op) { op.out.data = nullptr; });
  rejected([](Dequantize& op) { op.block_size = 96; });
  rejected([](Dequantize& op) { op.scales = {}; });
  rejected([&](Dequantize& op) { op.scales.absmax_codes = codes; });
  rejected([&](Dequantize& op) {
    op.scales = {.absmax = absmax,
                 .absmax_codes = codes,
                 .absmax_scale = absmax,
                 .offset = absmax};
  });
  rejected([&](Dequantize& op) {
    op.scales = {.absmax_codes = codes, .absmax_scale = absmax};
  });
  for (const int unknown : {-1, 3}) {
    rejected(
        [=](Dequantize& op) { op.type = static_cast<FourBitType>(unknown); });
  }
}

TEST(Int8RowsTest, BadArguments_AreRejected) {
  float values[8] = {};
  int8_t codes[8] = {};
  float scale[2] = {};
  const auto run = [&](auto expect, const View& view, int8_t* to,
                       float* scales) {
    expect(QuantizeInt8Rows{view, to, scales});
    expect(DequantizeInt8Rows{to, scales, view});
  };
  const auto accepted = [](const auto& op) { ExpectAccepted(op); };
  const auto rejected = [](const auto& op) { ExpectRejected(op); };
  View view = FloatView(values, 2, 4);
  run(accepted, view, codes, scale);
  run(rejected, view, nullptr, scale);
  run(rejected, view, codes, nullptr);
  run(rejected, FloatView(nullptr, 2, 4), codes, scale);
  view.stride = 3;
  run(rejected, view, codes, scale);
}

TEST(DynamicTest, BadArguments_AreRejected) {
  float x[64] = {}, scale[1] = {};
  uint8_t codes[64] = {};
  const auto run = [&](auto expect, DynamicMap map, const BlockwiseShape& shape,
                       float* values, uint8_t* to, float* scales) {
    expect(QuantizeDynamic{map, values, shape, to, scales});
    expect(DequantizeDynamic{map, to, scales, shape, values});
  };
  const auto accepted = [](const auto& op) { ExpectAccepted(op); };
  const auto rejected = [](const auto& op) { ExpectRejected(op); };
  const DynamicMap map = DynamicMap::kSigned;
  run(accepted, map, {64, 64}, x, codes, scale);
  run(accepted, map, {0, 64}, nullptr, nullptr, nullptr);
  run(rejected, map, {64, 64}, nullptr, codes, scale);
  run(rejected, map, {64, 64}, x, nullptr, scale);
  run(rejected, map, {64, 64}, x, codes, nullptr);
  run(rejected, map, {-1, 64}, x, codes, scale);
  for (const int block_size : {32, 96, 8192}) {
    run(rejected, map, {64, block_size}, x, codes, scale);
  }
  for (const int unknown : {-1, 3}) {
    run(rejected, static_cast<DynamicMap>(unknown), {64, 64}, x, codes, scale);
  }
}

INSTANTIATE_TEST_SUITE_P(All, BlockwiseBackendTest,
                         testing::ValuesIn(TestedBackends().begin(),
                                           TestedBackends().end()),
                         [](const auto& suite) {
                           return std::string(suite.param->name());
                         });

}  // namespace
}  // namespace qlora::kernels
