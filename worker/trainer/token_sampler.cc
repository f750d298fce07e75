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
  // A heap of the tokens yields the likeliest first, ties by number: few are
  // wanted, so that sorting them all would be most of a token's time.
  std::vector<int32_t> heap(logits.size());
  std::iota(heap.begin(), heap.end(), 0);
  const auto after = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] < logits[b] : a > b;
  };
  std::ranges::make_heap(heap, after);
  const auto weight = [&](float logit) {
    return std::exp((logit - *best) / options.temperature);
  };
  double total = 0;
  for (const float logit : logits) total += weight(logit);
  const bool all = !(options.top_p > 0 && options.top_p < 1);
  // The likeliest tokens, and the sums of their weights up to each.
  std::vector<int32_t> likeliest;
  std::vector<double> cumulative;
  const double uniform = Uniform(options.seed, draw);
  const double enough = total * (all ? uniform : options.top_p);
  double sum = 0;
  while (!heap.empty() && (sum < enough || likeliest.empty())) {
    std::ranges::pop_heap(heap, after);
    likeliest.push_back(heap.back());
    heap.pop_back();
    sum += weight(logits[likeliest.back()]);
    cumulative.push_back(sum);
  }
  const auto chosen =
      std::ranges::upper_bound(cumulative, all ? enough : uniform * sum);
  const auto i =
      std::min<size_t>(chosen - cumulative.begin(), likeliest.size() - 1);
  return likeliest[i];
}

}  // namespace qlora::trainer
