// A filter around the quantization ops, for comparison with bitsandbytes.
//
//   quantize_tool quantize TYPE FORM ELEMENTS BLOCK     float32s -> state
//   quantize_tool dequantize TYPE FORM ELEMENTS BLOCK   state -> float32s
//
// TYPE and FORM      state
// nf4|fp4 plain      codes, absmax
// nf4|fp4 nested     codes, absmax_codes, absmax_scale, offset
// int8 rows          codes, one scale a row of BLOCK elements
// dynamic signed     codes, one scale a block
// dynamic unsigned   codes, one scale a block
//
// as kernels/quant_format.h lays them out, nothing between; 4-bit tensors go
// through a slab. By the fastest backend of this processor.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/slab.h"

namespace qlora::kernels {
namespace {

const Backend& Cpu() { return *CpuBackends().front(); }

struct alignas(64) Line {
  uint8_t bytes[64];
};

template <typename T>
bool Read(std::vector<T>& values) {
  return std::fread(values.data(), sizeof(T), values.size(), stdin) ==
         values.size();
}

template <typename T>
bool Write(const std::vector<T>& values) {
  return std::fwrite(values.data(), sizeof(T), values.size(), stdout) ==
         values.size();
}

// A 4-bit tensor in bitsandbytes' parts, and in a slab.
class FourBit {
 public:
  FourBit(std::string_view type, const BlockwiseShape& shape, bool nested)
      : type_(type == "fp4" ? FourBitType::kFp4 : FourBitType::kNf4),
        shape_(shape),
        layout_(MakePackedLayout(shape, nested)),
        codes_(shape.code_bytes()),
        absmax_(nested ? 0 : shape.num_blocks()),
        absmax_codes_(nested ? shape.num_blocks() : 0),
        absmax_scale_(nested ? shape.num_nested_blocks() : 0),
        offset_(nested ? 1 : 0),
        slab_(layout_.bytes / kSlabAlignment) {}

  bool Quantize() {
    std::vector<float> x(shape_.num_elements);
    const kernels::Quantize op{.type = type_,
                               .x = x.data(),
                               .shape = shape_,
                               .codes = tensor(),
                               .scales = MutableScalesOf(layout_, tensor())};
    const int64_t bytes = Cpu().WorkspaceBytes(op, 1);
    std::vector<Line> workspace(bytes / 64 + 1);
    if (!Read(x) ||
        Cpu().Run({.workspace = workspace.data(), .workspace_bytes = bytes},
                  op) != Result::kOk) {
      return false;
    }
    UnpackTensor(shape_, layout_, tensor(), codes_.data(),
                 {.absmax = absmax_.data(),
                  .absmax_codes = absmax_codes_.data(),
                  .absmax_scale = absmax_scale_.data(),
                  .offset = offset_.data()});
    return Write(codes_) && Write(absmax_) && Write(absmax_codes_) &&
           Write(absmax_scale_) && Write(offset_);
  }

  bool Dequantize() {
    if (!Read(codes_) || !Read(absmax_) || !Read(absmax_codes_) ||
        !Read(absmax_scale_) || !Read(offset_)) {
      return false;
    }
    PackTensor(shape_, layout_, codes_.data(),
               {.absmax = absmax_.data(),
                .absmax_codes = absmax_codes_.data(),
                .absmax_scale = absmax_scale_.data(),
                .offset = offset_.data()},
               tensor());
    const int64_t n = shape_.num_elements;
    std::vector<float> x(n);
    const kernels::Dequantize op{.type = type_,
                                 .codes = tensor(),
                                 .scales = ViewScales(layout_, tensor()),
                                 .rows = 1,
                                 .block_size = shape_.block_size,
                                 .out = FloatView(x.data(), 1, n)};
    return Cpu().Run({}, op) == Result::kOk && Write(x);
  }

 private:
  uint8_t* tensor() { return slab_[0].bytes; }

  const FourBitType type_;
  const BlockwiseShape shape_;
  const PackedLayout layout_;
  std::vector<uint8_t> codes_;
  std::vector<float> absmax_;
  std::vector<uint8_t> absmax_codes_;
  std::vector<float> absmax_scale_;
  std::vector<float> offset_;
  std::vector<Line> slab_;
};

bool Int8(bool quantize, const BlockwiseShape& shape) {
  const int64_t rows = shape.num_elements / shape.block_size;
  std::vector<float> x(shape.num_elements), scale(rows);
  std::vector<int8_t> codes(shape.num_elements);
  const View view = FloatView(x.data(), rows, shape.block_size);
  if (quantize) {
    const QuantizeInt8Rows op{
        .x = view, .codes = codes.data(), .scale = scale.data()};
    return Read(x) && Cpu().Run({}, op) == Result::kOk && Write(codes) &&
           Write(scale);
  }
  const DequantizeInt8Rows op{
      .codes = codes.data(), .scale = scale.data(), .out = view};
  return Read(codes) && Read(scale) && Cpu().Run({}, op) == Result::kOk &&
         Write(x);
}

bool Dynamic(bool quantize, DynamicMap map, const BlockwiseShape& shape) {
  std::vector<float> x(shape.num_elements), scale(shape.num_blocks());
  std::vector<uint8_t> codes(shape.num_elements);
  if (quantize) {
    const QuantizeDynamic op{.map = map,
                             .x = x.data(),
                             .shape = shape,
                             .codes = codes.data(),
                             .scale = scale.data()};
    return Read(x) && Cpu().Run({}, op) == Result::kOk && Write(codes) &&
           Write(scale);
  }
  const DequantizeDynamic op{.map = map,
                             .codes = codes.data(),
                             .scale = scale.data(),
                             .shape = shape,
                             .out = x.data()};
  return Read(codes) && Read(scale) && Cpu().Run({}, op) == Result::kOk &&
         Write(x);
}

bool Run(bool quantize, std::string_view type, std::string_view form,
         const BlockwiseShape& shape) {
  if (type == "int8") return Int8(quantize, shape);
  if (type == "dynamic") {
    return Dynamic(
        quantize,
        form == "signed" ? DynamicMap::kSigned : DynamicMap::kUnsigned, shape);
  }
  FourBit tensor(type, shape, form == "nested");
  return quantize ? tensor.Quantize() : tensor.Dequantize();
}

}  // namespace
}  // namespace qlora::kernels

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr,
                 "usage: quantize_tool quantize|dequantize TYPE FORM ELEMENTS "
                 "BLOCK\n");
    return 2;
  }
  const qlora::kernels::BlockwiseShape shape{
      .num_elements = std::atoll(argv[4]), .block_size = std::atoi(argv[5])};
  return qlora::kernels::Run(argv[1] == std::string_view("quantize"), argv[2],
                             argv[3], shape)
             ? 0
             : 1;
}
