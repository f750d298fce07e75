// The nearest value of a dynamic map with two loads and one comparison.
#pragma once

#include <cstdint>

#include "kernels/quant_format.h"

namespace qlora::kernels {

// Magnitudes fall into bins by exponent and seven bits of mantissa, so narrow
// that at most one threshold lies in each. Bin 0 also has all that is smaller
// (no threshold lies there), the last all that is at least 1.
inline constexpr uint32_t kDynamicFirstBin = 104u << 7;  // 2^-23
inline constexpr uint32_t kDynamicLastBin = 127u << 7;
inline constexpr uint32_t kDynamicBins = kDynamicLastBin - kDynamicFirstBin + 1;

struct DynamicSearch {
  // x > thresholds[i] has a code above i; the last is infinite. On a midpoint
  // the even code wins, where the halving search of the device ends.
  float thresholds[256];
  // The codes of the thresholds that lie in a bin, or of the next above it;
  // bins of negative numbers follow those of positive ones. The last, where NaN
  // belongs too, has code 0.
  uint8_t codes[2 * kDynamicBins];
};

extern const DynamicSearch kSignedSearch;
extern const DynamicSearch kUnsignedSearch;

}  // namespace qlora::kernels
