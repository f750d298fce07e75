#include "worker/trainer/token_sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace qlora::trainer {
namespace {

// SplitMix64's output function, applied to a counter.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// In [0, 1).
double Uniform(uint64_t seed, uint64_t draw) {
  return static_cast<double>(Mix(Mix(seed) ^ draw) >> 11) * 0x1p-53;
}

}  // namespace

int32_t SampleToken(std::span<const float> logits,
                    const SamplingOptions& options, uint64_t draw) {
  const auto best = std::ranges::max_element(logits);
  if (options.temperature <= 0) {
    return static_cast<int32_t>(best - logits.begin());
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(
      order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  std::vector<double> cumulative(logits.size());
  double total = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    total += std::exp((logits[order[i]] - *best) / options.temperature);
    cumulative[i] = total;
  }
  if (options.top_p > 0 && options.top_p < 1) {
    const auto last =
        std::ranges::lower_bound(cumulative, options.top_p * total);
    if (last != cumulative.end()) total = *last;
  }
  const auto chosen =
      std::ranges::upper_bound(cumulative, Uniform(options.seed, draw) * total);
  const auto i =
      std::min<size_t>(chosen - cumulative.begin(), order.size() - 1);
  return order[i];
}

}  // namespace qlora::trainer
