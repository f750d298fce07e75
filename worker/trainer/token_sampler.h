// Chooses the next token. Pure functions: the same arguments give the same
// token on every machine.
#pragma once

#include <cstdint>
#include <span>

namespace qlora::trainer {

struct SamplingOptions {
  // 0: greedy.
  double temperature = 0;
  // The smallest set of likeliest tokens whose probabilities sum to at least
  // this; 0 or 1: all.
  double top_p = 0;
  uint64_t seed = 0;
};

// `draw` numbers the draws of one seed.
int32_t SampleToken(std::span<const float> logits,
                    const SamplingOptions& options, uint64_t draw);

}  // namespace qlora::trainer
