#include "worker/trainer/optim/adamw.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace qlora::trainer {
namespace {

// Elements that are summed by one thread, and updated by one.
constexpr int64_t kChunk = 16384;

// What is the same for all elements of a step, in float32 as in torch.
struct Factors {
  float clip;
  float keep;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float minus_step_size;
  float sqrt_correction2;
  float epsilon;
};

void Update(const Factors& f, int64_t n, float* param, float* grad,
            float* exp_avg, float* exp_avg_sq) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * f.clip;
    grad[i] = 0;
    const float m = exp_avg[i] + f.one_minus_beta1 * (g - exp_avg[i]);
    const float v = exp_avg_sq[i] * f.beta2 + f.one_minus_beta2 * g * g;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    const float denominator = std::sqrt(v) / f.sqrt_correction2 + f.epsilon;
    param[i] = param[i] * f.keep + f.minus_step_size * (m / denominator);
  }
}

}  // namespace

double GlobalNorm(std::span<const float> values,
                  const kernels::ParallelFor& parallel_for) {
  const auto n = static_cast<int64_t>(values.size());
  std::vector<double> sums((n + kChunk - 1) / kChunk);
  parallel_for(static_cast<int64_t>(sums.size()), 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t c = begin; c < end; ++c) {
                   double sum = 0;
                   const int64_t stop = std::min(n, (c + 1) * kChunk);
                   for (int64_t i = c * kChunk; i < stop; ++i) {
                     sum += static_cast<double>(values[i]) * values[i];
                   }
                   sums[c] = sum;
                 }
               });
  double total = 0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

AdamW::AdamW(const AdamWOptions& options, std::vector<AdamWRange> ranges,
             int64_t total, const kernels::ParallelFor& parallel_for)
    : options_(options),
      ranges_(std::move(ranges)),
      parallel_for_(parallel_for),
      exp_avg_(total),
      exp_avg_sq_(total) {}

void AdamW::Step(int64_t step, double learning_rate, double grad_norm,
                 std::span<float> params, std::span<float> grads) {
  double clip = 1;
  if (options_.max_grad_norm > 0) {
    clip = std::min(1.0, options_.max_grad_norm / (grad_norm + 1e-6));
  }
  const auto t = static_cast<double>(step);
  const double correction1 = 1 - std::pow(options_.beta1, t);
  const double correction2 = 1 - std::pow(options_.beta2, t);
  for (const AdamWRange& range : ranges_) {
    const double decay = range.decay ? options_.weight_decay : 0;
    const Factors factors{
        .clip = static_cast<float>(clip),
        .keep = static_cast<float>(1 - learning_rate * decay),
        .one_minus_beta1 = static_cast<float>(1 - options_.beta1),
        .beta2 = static_cast<float>(options_.beta2),
        .one_minus_beta2 = static_cast<float>(1 - options_.beta2),
        .minus_step_size = static_cast<float>(-learning_rate / correction1),
        .sqrt_correction2 = static_cast<float>(std::sqrt(correction2)),
        .epsilon = static_cast<float>(options_.epsilon)};
    parallel_for_(range.size, kChunk, [&](int64_t begin, int64_t end) {
      const int64_t at = range.offset + begin;
      Update(factors, end - begin, params.data() + at, grads.data() + at,
             exp_avg_.data() + at, exp_avg_sq_.data() + at);
    });
  }
}

}  // namespace qlora::trainer
