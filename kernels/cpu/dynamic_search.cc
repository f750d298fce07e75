#include "kernels/cpu/dynamic_search.h"

#include <bit>
#include <cmath>
#include <limits>

namespace qlora::kernels {
namespace {

void FillThresholds(const float* map, float* thresholds) {
  for (int i = 0; i < 255; ++i) {
    const float middle = (map[i] + map[i + 1]) * 0.5f;
    thresholds[i] = i % 2 == 0 ? middle : std::nextafter(middle, -2.0f);
  }
  thresholds[255] = std::numeric_limits<float>::infinity();
}

// The least magnitude of a bin.
float Edge(uint32_t bin) {
  return bin == 0 ? 0 : std::bit_cast<float>((bin + kDynamicFirstBin) << 16);
}

DynamicSearch MakeSearch(DynamicMap map) {
  DynamicSearch search;
  FillThresholds(DynamicMapValues(map), search.thresholds);
  for (uint32_t bin = 0, code = 0; bin < kDynamicBins; ++bin) {
    while (Edge(bin) > search.thresholds[code]) ++code;
    search.codes[bin] = static_cast<uint8_t>(code);
  }
  // From the most negative upwards; the numbers of a bin lie above the edge of
  // the next.
  for (uint32_t bin = kDynamicBins, code = 0; bin-- > 0;) {
    const float below = bin + 1 == kDynamicBins
                            ? -std::numeric_limits<float>::infinity()
                            : -Edge(bin + 1);
    while (below >= search.thresholds[code]) ++code;
    search.codes[kDynamicBins + bin] = static_cast<uint8_t>(code);
  }
  return search;
}

}  // namespace

const DynamicSearch kSignedSearch = MakeSearch(DynamicMap::kSigned);
const DynamicSearch kUnsignedSearch = MakeSearch(DynamicMap::kUnsigned);

}  // namespace qlora::kernels
