#include "kernels/slab.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/backend.h"

namespace qlora::kernels {
namespace {

// The parts on their own, as bitsandbytes keeps them.
struct Parts {
  std::vector<uint8_t> codes, absmax_codes;
  std::vector<float> absmax, absmax_scale;
  float offset = 0;
  bool operator==(const Parts&) const = default;

  Parts(const BlockwiseShape& shape, bool nested)
      : codes(shape.code_bytes()),
        absmax_codes(nested ? shape.num_blocks() : 0),
        absmax(nested ? 0 : shape.num_blocks()),
        absmax_scale(nested ? shape.num_nested_blocks() : 0) {}

  void Fill(std::mt19937& random) {
    for (uint8_t& code : codes) code = random() & 255;
    for (uint8_t& code : absmax_codes) code = random() & 255;
    std::uniform_real_distribution<float> scale(0.1f, 2);
    for (float& value : absmax) value = scale(random);
    for (float& value : absmax_scale) value = scale(random);
    if (absmax.empty()) offset = scale(random);
  }
  MutableScales scales() {
    if (!absmax.empty()) return {.absmax = absmax.data()};
    return {.absmax_codes = absmax_codes.data(),
            .absmax_scale = absmax_scale.data(),
            .offset = &offset};
  }
  ScalesView view() {
    const MutableScales s = scales();
    return {s.absmax, s.absmax_codes, s.absmax_scale, s.offset};
  }
};

struct alignas(kSlabAlignment) Line {
  uint8_t bytes[kSlabAlignment];
};

struct Tensor {
  BlockwiseShape shape;
  int64_t rows;
  bool nested;
  PackedLayout layout;
  int64_t begin;
  Parts parts;
};

std::vector<Tensor> RandomTensors(std::mt19937& random, int64_t* bytes) {
  std::vector<Tensor> tensors;
  *bytes = 0;
  for (int i = 0; i < 5; ++i) {
    const auto rows = static_cast<int64_t>(1 + random() % 30);
    const auto columns = static_cast<int64_t>(1 + random() % 300);
    const BlockwiseShape shape{rows * columns, 32 << random() % 8};
    const bool nested = random() % 2 == 0;
    const PackedLayout layout = MakePackedLayout(shape, nested);
    tensors.push_back({shape, rows, nested, layout, *bytes, {shape, nested}});
    tensors.back().parts.Fill(random);
    *bytes += layout.bytes;
  }
  return tensors;
}

std::vector<float> Values(const Tensor& t, const uint8_t* codes,
                          const ScalesView& scales) {
  std::vector<float> out(t.shape.num_elements);
  const int64_t columns = t.shape.num_elements / t.rows;
  EXPECT_EQ(ReferenceBackend().Run(
                {}, Dequantize{.codes = codes,
                               .scales = scales,
                               .rows = t.rows,
                               .block_size = t.shape.block_size,
                               .out = FloatView(out.data(), t.rows, columns)}),
            Result::kOk);
  return out;
}

// Equal shards, each in memory of its own, put together again.
TEST(SlabTest, GatheredShardsHaveEveryByte) {
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    int64_t bytes = 0;
    std::vector<Tensor> tensors = RandomTensors(random, &bytes);
    std::vector<uint8_t> slab(bytes);
    for (Tensor& t : tensors) {
      PackTensor(t.shape, t.layout, t.parts.codes.data(), t.parts.view(),
                 slab.data() + t.begin);
    }
    const int shards = 1 + static_cast<int>(random() % 8);
    const int64_t part = SlabShardBytes(bytes, shards);
    ASSERT_GE(part * shards, bytes);
    ASSERT_LT(part * shards - bytes, kSlabAlignment * shards);
    slab.resize(part * shards);
    std::vector<Line> gathered(slab.size() / kSlabAlignment);
    uint8_t* whole = gathered[0].bytes;
    for (int s = shards; s-- > 0;) {
      const std::vector<uint8_t> shard(slab.begin() + s * part,
                                       slab.begin() + (s + 1) * part);
      std::copy(shard.begin(), shard.end(), whole + s * part);
    }
    for (Tensor& t : tensors) {
      Parts back(t.shape, t.nested);
      UnpackTensor(t.shape, t.layout, whole + t.begin, back.codes.data(),
                   back.scales());
      EXPECT_EQ(back, t.parts);
      EXPECT_EQ(
          Values(t, whole + t.begin, ViewScales(t.layout, whole + t.begin)),
          Values(t, t.parts.codes.data(), t.parts.view()));
    }
  }
}

TEST(SlabTest, PartsBeginAtLinesAndGapsAreZero) {
  const BlockwiseShape shape{500, 64};
  Parts parts(shape, true);
  parts.codes.assign(250, 0xff);
  parts.absmax_codes.assign(8, 0xff);
  const PackedLayout layout = MakePackedLayout(shape, true);
  std::vector<Line> slab(layout.bytes / kSlabAlignment);
  std::fill_n(slab[0].bytes, layout.bytes, 0xa5);
  PackTensor(shape, layout, parts.codes.data(), parts.view(), slab[0].bytes);
  EXPECT_EQ(std::count(slab[0].bytes, slab[0].bytes + layout.bytes, 0xff), 258);
  EXPECT_EQ(std::count(slab[0].bytes, slab[0].bytes + layout.bytes, 0),
            layout.bytes - 258);
  for (const int64_t at :
       {layout.absmax_codes, layout.absmax_scale, layout.offset}) {
    EXPECT_EQ(at % kSlabAlignment, 0);
  }
}

TEST(SlabTest, EmptyTensor_HasItsFormOfScales) {
  const BlockwiseShape empty{0, 64};
  const PackedLayout plain = MakePackedLayout(empty, false);
  EXPECT_EQ(plain.bytes, 0);
  Line line = {};
  EXPECT_NE(ViewScales(plain, line.bytes).absmax, nullptr);
  const PackedLayout nested = MakePackedLayout(empty, true);
  EXPECT_EQ(nested.bytes, kSlabAlignment);
  EXPECT_EQ(ViewScales(nested, line.bytes).absmax, nullptr);
  const float offset = 3;
  PackTensor(empty, nested, nullptr, {.offset = &offset}, line.bytes);
  float back = 0;
  UnpackTensor(empty, nested, line.bytes, nullptr, {.offset = &back});
  EXPECT_EQ(back, 3);
}

}  // namespace
}  // namespace qlora::kernels
