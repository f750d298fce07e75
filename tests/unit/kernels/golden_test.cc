// Every backend against tests/golden/quant/golden.txt, which an implementation
// of its own made from the published rules (make.py beside it).
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "tests/unit/kernels/property.h"

namespace qlora::kernels {
namespace {

constexpr int64_t kRows = 5, kColumns = 3329;

// By name.
const std::map<std::string, std::string>& Golden() {
  static const auto* golden = [] {
    auto* lines = new std::map<std::string, std::string>;
    std::ifstream file(QLORA_SOURCE_DIR "/tests/golden/quant/golden.txt");
    for (std::string name, digits; file >> name >> digits;) {
      (*lines)[name] = digits;
    }
    return lines;
  }();
  return *golden;
}

// make.py's.
std::vector<float> Inputs(int64_t n, uint32_t state) {
  std::vector<float> x(n);
  for (int64_t i = 0; i < n; ++i) {
    state = state * 1664525 + 1013904223;
    const int32_t steps = static_cast<int32_t>(state >> 8) - (1 << 23);
    x[i] = std::ldexp(static_cast<float>(steps),
                      -24 - static_cast<int>(i / 64 % 5));
  }
  return x;
}

std::string Hex(uint64_t value, int digits) {
  std::string text;
  for (int shift = 4 * digits - 4; shift >= 0; shift -= 4) {
    text += "0123456789abcdef"[value >> shift & 15];
  }
  return text;
}

template <typename T>
std::string Hex(const std::vector<T>& values) {
  std::string text;
  for (const T& value : values) {
    if constexpr (sizeof(T) == 1) {
      text += Hex(static_cast<uint8_t>(value), 2);
    } else {
      text += Hex(std::bit_cast<uint32_t>(value), 8);
    }
  }
  return text;
}

// FNV-1a.
std::string Hash(const std::vector<uint8_t>& bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001b3;
  return Hex(hash, 16);
}

void Expect(const std::string& name, const std::string& digits) {
  const auto found = Golden().find(name);
  ASSERT_NE(found, Golden().end()) << name;
  EXPECT_EQ(digits, found->second) << name;
}

// run(out) gives kOk and the golden values in every type.
template <typename Run>
void ExpectExpanded(const std::string& name, int64_t rows, int64_t columns,
                    Run run) {
  const std::pair<Dtype, const char*> types[] = {
      {Dtype::kFloat32, "_float32"},
      {Dtype::kBfloat16, "_bfloat16"},
      {Dtype::kFloat16, "_float16"}};
  for (const auto& [dtype, suffix] : types) {
    std::vector<uint8_t> bytes(rows * columns * ElementSize(dtype));
    ASSERT_EQ(run(MakeView(bytes.data(), dtype, rows, columns)), Result::kOk);
    Expect(name + suffix, Hash(bytes));
  }
}

class GoldenTest : public testing::TestWithParam<const Backend*> {
 protected:
  template <typename Op>
  static void RunOk(const Op& op) {
    ASSERT_EQ(RunWithRoom(*GetParam(), {}, op), Result::kOk);
  }
  static void FourBits(FourBitType type, int block_size,
                       const std::string& name);
  static void ExpectDequantized(FourBitType type, int block_size,
                                const std::vector<uint8_t>& codes,
                                const ScalesView& scales,
                                const std::string& name);
};

void GoldenTest::ExpectDequantized(FourBitType type, int block_size,
                                   const std::vector<uint8_t>& codes,
                                   const ScalesView& scales,
                                   const std::string& name) {
  ExpectExpanded(name, kRows, kColumns, [&](const View& out) {
    return GetParam()->Run({}, Dequantize{.type = type,
                                          .codes = codes.data(),
                                          .scales = scales,
                                          .rows = kRows,
                                          .block_size = block_size,
                                          .out = out});
  });
}

void GoldenTest::FourBits(FourBitType type, int block_size,
                          const std::string& name) {
  const std::vector<float> x = Inputs(kRows * kColumns, 1);
  const BlockwiseShape shape = {std::ssize(x), block_size};
  std::vector<uint8_t> codes(shape.code_bytes()),
      absmax_codes(shape.num_blocks());
  std::vector<float> absmax(shape.num_blocks()),
      absmax_scale(shape.num_nested_blocks()), offset(1);
  Quantize op = {.type = type,
                 .x = x.data(),
                 .shape = shape,
                 .codes = codes.data(),
                 .scales = {.absmax = absmax.data()}};
  RunOk(op);
  Expect(name + "_codes", Hex(codes));
  Expect(name + "_absmax", Hex(absmax));
  ExpectDequantized(type, block_size, codes, {.absmax = absmax.data()},
                    name + "_plain");
  codes.assign(codes.size(), 0);
  op.scales = {.absmax_codes = absmax_codes.data(),
               .absmax_scale = absmax_scale.data(),
               .offset = offset.data()};
  RunOk(op);
  Expect(name + "_codes", Hex(codes));
  Expect(name + "_absmax_codes", Hex(absmax_codes));
  Expect(name + "_absmax_scale", Hex(absmax_scale));
  Expect(name + "_offset", Hex(offset));
  ExpectDequantized(type, block_size, codes,
                    {.absmax_codes = absmax_codes.data(),
                     .absmax_scale = absmax_scale.data(),
                     .offset = offset.data()},
                    name + "_nested");
}

TEST_P(GoldenTest, FourBits) {
  for (const int block_size : {64, 4096}) {
    const std::string size = std::to_string(block_size);
    FourBits(FourBitType::kNf4, block_size, "nf4_" + size);
    FourBits(FourBitType::kFp4, block_size, "fp4_" + size);
  }
}

TEST_P(GoldenTest, Int8Rows) {
  const int64_t rows = 13, columns = 77;
  const std::vector<float> x = Inputs(rows * columns, 2);
  std::vector<int8_t> codes(x.size());
  std::vector<float> scale(rows);
  RunOk(QuantizeInt8Rows{.x = FloatView(x.data(), rows, columns),
                         .codes = codes.data(),
                         .scale = scale.data()});
  Expect("int8_codes", Hex(codes));
  Expect("int8_scale", Hex(scale));
  ExpectExpanded("int8", rows, columns, [&](const View& out) {
    return GetParam()->Run(
        {}, DequantizeInt8Rows{
                .codes = codes.data(), .scale = scale.data(), .out = out});
  });
}

TEST_P(GoldenTest, DynamicMaps) {
  for (const DynamicMap map : {DynamicMap::kSigned, DynamicMap::kUnsigned}) {
    const std::string name = map == DynamicMap::kSigned ? "signed" : "unsigned";
    const float* values = DynamicMapValues(map);
    Expect(name + "_map", Hex(std::vector<float>(values, values + 256)));
    std::vector<float> x = Inputs(1000, 3);
    for (float& value : x) {
      if (map == DynamicMap::kUnsigned) value = std::fabs(value);
    }
    const BlockwiseShape shape = {std::ssize(x), 256};
    std::vector<uint8_t> codes(x.size());
    std::vector<float> scale(shape.num_blocks());
    RunOk(QuantizeDynamic{.map = map,
                          .x = x.data(),
                          .shape = shape,
                          .codes = codes.data(),
                          .scale = scale.data()});
    Expect(name + "_codes", Hex(codes));
    Expect(name + "_scale", Hex(scale));
    std::vector<uint8_t> back(x.size() * sizeof(float));
    RunOk(DequantizeDynamic{.map = map,
                            .codes = codes.data(),
                            .scale = scale.data(),
                            .shape = shape,
                            .out = reinterpret_cast<float*>(back.data())});
    Expect(name + "_float32", Hash(back));
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest, testing::ValuesIn(EveryBackend()),
                         [](const auto& suite) {
                           return std::string(suite.param->name());
                         });

}  // namespace
}  // namespace qlora::kernels
