#include "kernels/slab.h"

#include <cstring>

namespace qlora::kernels {
namespace {

// f(part of the slab's tensor, part on its own, bytes of it) for those that are
// not empty.
template <typename Tensor, typename Codes, typename Scales, typename F>
void ForParts(const BlockwiseShape& shape, const PackedLayout& layout,
              Tensor* tensor, Codes* codes, const Scales& scales, F f) {
  const auto part = [&](int64_t at, auto* own, int64_t bytes) {
    if (bytes > 0) f(tensor + at, own, bytes);
  };
  part(0, codes, shape.code_bytes());
  if (!layout.nested) {
    part(layout.absmax, scales.absmax, shape.num_blocks() * 4);
    return;
  }
  part(layout.absmax_codes, scales.absmax_codes, shape.num_blocks());
  part(layout.absmax_scale, scales.absmax_scale, shape.num_nested_blocks() * 4);
  part(layout.offset, scales.offset, 4);
}

}  // namespace

MutableScales MutableScalesOf(const PackedLayout& layout, uint8_t* tensor) {
  const auto floats = [tensor](int64_t part) {
    return reinterpret_cast<float*>(tensor + part);
  };
  if (!layout.nested) return {.absmax = floats(layout.absmax)};
  return {.absmax_codes = tensor + layout.absmax_codes,
          .absmax_scale = floats(layout.absmax_scale),
          .offset = floats(layout.offset)};
}

ScalesView ViewScales(const PackedLayout& layout, const uint8_t* tensor) {
  const MutableScales scales =
      MutableScalesOf(layout, const_cast<uint8_t*>(tensor));
  return {.absmax = scales.absmax,
          .absmax_codes = scales.absmax_codes,
          .absmax_scale = scales.absmax_scale,
          .offset = scales.offset};
}

void PackTensor(const BlockwiseShape& shape, const PackedLayout& layout,
                const uint8_t* codes, const ScalesView& scales,
                uint8_t* tensor) {
  std::memset(tensor, 0, layout.bytes);
  ForParts(shape, layout, tensor, codes, scales,
           [](uint8_t* packed, const void* part, int64_t bytes) {
             std::memcpy(packed, part, bytes);
           });
}

void UnpackTensor(const BlockwiseShape& shape, const PackedLayout& layout,
                  const uint8_t* tensor, uint8_t* codes,
                  const MutableScales& scales) {
  ForParts(shape, layout, tensor, codes, scales,
           [](const uint8_t* packed, void* part, int64_t bytes) {
             std::memcpy(part, packed, bytes);
           });
}

}  // namespace qlora::kernels
