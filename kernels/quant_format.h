// The blockwise formats of bitsandbytes and the constants that define them.
//
// A tensor is flattened row-major and cut into blocks of `block_size`
// consecutive elements (a block may span rows; the last may be partial). Each
// block has a scale, absmax = max |x|. Element 2j is in the HIGH nibble of byte
// j, element 2j+1 in the LOW one. With nested scales the absmax values, less
// their mean (`offset`), are themselves quantized to 8 bits in blocks of 256.
//
//   codes          u8[(n + 1) / 2]
//   absmax         f32[n_blocks]                          (plain)
//   absmax_codes   u8[n_blocks]                           (nested)
//   absmax_scale   f32[(n_blocks + 255) / 256], offset f32 (nested)
//
// Source: bitsandbytes' CUDA kernels (docs/formats/bitsandbytes.md has the rule
// and where its CPU library deviates from it).
#pragma once

#include <cstdint>

namespace qlora::kernels {

inline constexpr int kNestedBlockSize = 256;

enum class FourBitType { kNf4, kFp4 };

// The signed and the unsigned map of bitsandbytes (create_dynamic_map).
enum class DynamicMap { kSigned, kUnsigned };

// NF4 values by code, ascending.
extern const float (&kNf4Values)[16];
// kNf4Thresholds[i] separates codes i and i + 1; a value on it takes code i.
extern const float (&kNf4Thresholds)[15];
// FP4 values by code: bit 3 is the sign.
extern const float (&kFp4Values)[16];
// What separates the magnitudes 0, 1, 6, 7, 4, 5, 2, 3 (codes in the order of
// their values), a value on a threshold taking the smaller. The literals of
// bitsandbytes' CUDA kernels; most are not quite midpoints.
extern const float (&kFp4Thresholds)[7];
// Ascending.
extern const float (&kDynamicMapSigned)[256];
extern const float (&kDynamicMapUnsigned)[256];

// What a code of 8-bit rows is worth, times the row's scale: bitsandbytes'
// literal for 1 / 127.
inline constexpr float kInt8Step = 7.874015718698502e-3f;

// By code, 16 and 256 of them.
const float* FourBitValues(FourBitType type);
const float* DynamicMapValues(DynamicMap map);

// Shape of a quantized tensor's parts, elements not bytes.
struct BlockwiseShape {
  int64_t num_elements;
  int block_size;
  constexpr int64_t num_blocks() const {
    return (num_elements + block_size - 1) / block_size;
  }
  constexpr int64_t code_bytes() const { return (num_elements + 1) / 2; }
  constexpr int64_t num_nested_blocks() const {
    return (num_blocks() + kNestedBlockSize - 1) / kNestedBlockSize;
  }
};

// Scales of a quantized tensor; exactly one of the two forms is set: absmax, or
// the other three.
struct ScalesView {
  const float* absmax = nullptr;
  const uint8_t* absmax_codes = nullptr;
  const float* absmax_scale = nullptr;
  const float* offset = nullptr;
};

struct MutableScales {
  float* absmax = nullptr;
  uint8_t* absmax_codes = nullptr;
  float* absmax_scale = nullptr;
  float* offset = nullptr;
};

}  // namespace qlora::kernels
