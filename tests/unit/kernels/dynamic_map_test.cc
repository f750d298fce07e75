// The dynamic maps against LibTorch's own linspace, out of which bitsandbytes
// builds them.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/quant_format.h"

namespace qlora::kernels {
namespace {

void ExpectLinspaceConstruction(DynamicMap map) {
  const bool is_signed = map == DynamicMap::kSigned;
  std::vector<float> values = {0.0f, 1.0f};
  for (int i = 0; i < 7; ++i) {
    const int steps = is_signed ? 1 << i : 2 << i;
    const at::Tensor edges = at::linspace(0.1, 1, steps + 1, at::kFloat);
    const at::Tensor means =
        (edges.slice(0, 0, -1) + edges.slice(0, 1)) / 2.0 * std::pow(10, i - 6);
    for (int64_t k = 0; k < means.size(0); ++k) {
      values.push_back(means[k].item<float>());
      if (is_signed) values.push_back(-means[k].item<float>());
    }
  }
  std::sort(values.begin(), values.end());
  ASSERT_EQ(values.size(), 256);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(values[i], DynamicMapValues(map)[i]) << "index " << i;
  }
}

TEST(DynamicMap, EqualsLinspaceConstruction) {
  if (at::get_cpu_capability() == "DEFAULT") {
    GTEST_SKIP() << "without fused multiply-add linspace rounds otherwise";
  }
  ExpectLinspaceConstruction(DynamicMap::kSigned);
  ExpectLinspaceConstruction(DynamicMap::kUnsigned);
}

}  // namespace
}  // namespace qlora::kernels
