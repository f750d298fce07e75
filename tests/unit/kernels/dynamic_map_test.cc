// The signed dynamic map against LibTorch's own linspace, out of which
// bitsandbytes builds it.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/quant_format.h"

namespace qlora::kernels {
namespace {

TEST(DynamicMap, EqualsLinspaceConstruction) {
  if (at::get_cpu_capability() == "DEFAULT") {
    GTEST_SKIP() << "without fused multiply-add linspace rounds otherwise";
  }
  std::vector<float> values = {0.0f, 1.0f};
  for (int i = 0; i < 7; ++i) {
    const at::Tensor edges = at::linspace(0.1, 1, (1 << i) + 1, at::kFloat);
    const at::Tensor means =
        (edges.slice(0, 0, -1) + edges.slice(0, 1)) / 2.0 * std::pow(10, i - 6);
    for (int64_t k = 0; k < means.size(0); ++k) {
      values.push_back(means[k].item<float>());
      values.push_back(-means[k].item<float>());
    }
  }
  std::sort(values.begin(), values.end());
  ASSERT_EQ(values.size(), kDynamicMapSigned.size());
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(values[i], kDynamicMapSigned[i]) << "index " << i;
  }
}

}  // namespace
}  // namespace qlora::kernels
