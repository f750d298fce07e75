// A filter around the NF4 kernels, for comparison with bitsandbytes.
//
//   nf4_tool quantize ELEMENTS BLOCK plain|nested     float32s -> state
//   nf4_tool dequantize ELEMENTS BLOCK plain|nested   state -> float32s
//
// A state is codes, then absmax (plain) or absmax_codes, absmax_scale and
// offset (nested), as kernels/quant_format.h lays them out, nothing between.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "kernels/nf4.h"

namespace qlora::kernels {
namespace {

struct State {
  explicit State(const BlockwiseShape& shape, bool is_nested)
      : nested(is_nested),
        codes(shape.code_bytes()),
        absmax(is_nested ? 0 : shape.num_blocks()),
        absmax_codes(is_nested ? shape.num_blocks() : 0),
        absmax_scale(is_nested ? shape.num_nested_blocks() : 0),
        offset(is_nested ? 1 : 0) {}

  bool nested;
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  std::vector<uint8_t> absmax_codes;
  std::vector<float> absmax_scale;
  std::vector<float> offset;
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

bool Quantize(const BlockwiseShape& shape, bool nested) {
  std::vector<float> x(shape.num_elements);
  State state(shape, nested);
  std::vector<uint8_t> workspace(QuantizeNf4WorkspaceBytes(shape, nested));
  MutableScales scales;
  if (nested) {
    scales.absmax_codes = state.absmax_codes.data();
    scales.absmax_scale = state.absmax_scale.data();
    scales.offset = state.offset.data();
  } else {
    scales.absmax = state.absmax.data();
  }
  return Read(x) &&
         QuantizeNf4(x.data(), shape, state.codes.data(), scales,
                     workspace.data(), SerialFor) == Nf4Result::kOk &&
         Write(state.codes) && Write(state.absmax) &&
         Write(state.absmax_codes) && Write(state.absmax_scale) &&
         Write(state.offset);
}

bool Dequantize(const BlockwiseShape& shape, bool nested) {
  State state(shape, nested);
  if (!Read(state.codes) || !Read(state.absmax) || !Read(state.absmax_codes) ||
      !Read(state.absmax_scale) || !Read(state.offset)) {
    return false;
  }
  ScalesView scales;
  if (nested) {
    scales.absmax_codes = state.absmax_codes.data();
    scales.absmax_scale = state.absmax_scale.data();
    scales.offset = state.offset[0];
  } else {
    scales.absmax = state.absmax.data();
  }
  std::vector<float> x(shape.num_elements);
  return DequantizeNf4(state.codes.data(), scales, 1, shape.num_elements,
                       shape.block_size, 0, 1, Dtype::kFloat32, x.data(),
                       shape.num_elements, SerialFor) == Nf4Result::kOk &&
         Write(x);
}

}  // namespace
}  // namespace qlora::kernels

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(
        stderr,
        "usage: nf4_tool quantize|dequantize ELEMENTS BLOCK plain|nested\n");
    return 2;
  }
  const qlora::kernels::BlockwiseShape shape{
      .num_elements = std::atoll(argv[2]), .block_size = std::atoi(argv[3])};
  const bool nested = std::string_view(argv[4]) == "nested";
  const bool ok = std::string_view(argv[1]) == "quantize"
                      ? qlora::kernels::Quantize(shape, nested)
                      : qlora::kernels::Dequantize(shape, nested);
  return ok ? 0 : 1;
}
