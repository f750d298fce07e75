#include <cmath>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/optim/schedule.h"

namespace qlora::trainer {
namespace {

const kernels::ParallelFor kSerial =
    [](int64_t n, int64_t, kernels::RangeBody body) { body(0, n); };
// Cuts the range into pieces and takes the last first.
const kernels::ParallelFor kBackwards = [](int64_t n, int64_t grain,
                                           kernels::RangeBody body) {
  for (int64_t b = (n - 1) / grain * grain; b >= 0; b -= grain) {
    body(b, std::min(n, b + grain));
  }
};

Schedule MakeTestSchedule(LrScheduler kind) {
  return {
      .kind = kind, .learning_rate = 2.0, .warmup_steps = 4, .total_steps = 12};
}

// By the formulas of transformers' get_scheduler.
TEST(Schedule, Warmup_GrowsFromZero) {
  for (const auto kind :
       {LrScheduler::kConstant, LrScheduler::kLinear, LrScheduler::kCosine}) {
    const Schedule s = MakeTestSchedule(kind);
    EXPECT_EQ(LearningRateAt(s, 1), 0);
    EXPECT_EQ(LearningRateAt(s, 2), 0.5);
    EXPECT_EQ(LearningRateAt(s, 5), 2.0);
  }
}

TEST(Schedule, AfterWarmup_FollowsItsKind) {
  EXPECT_EQ(LearningRateAt(MakeTestSchedule(LrScheduler::kConstant), 12), 2.0);
  const Schedule linear = MakeTestSchedule(LrScheduler::kLinear);
  EXPECT_EQ(LearningRateAt(linear, 9), 1.0);
  EXPECT_EQ(LearningRateAt(linear, 12), 0.25);
  EXPECT_EQ(LearningRateAt(linear, 13), 0.0);
  const Schedule cosine = MakeTestSchedule(LrScheduler::kCosine);
  EXPECT_DOUBLE_EQ(LearningRateAt(cosine, 9), 1.0);
  EXPECT_DOUBLE_EQ(LearningRateAt(cosine, 7), 1.0 + std::sqrt(0.5));
}

TEST(Schedule, WarmupRatio_IsRoundedUpAndStepsWin) {
  JobSpec::Train train;
  train.warmup_ratio = 0.03;
  EXPECT_EQ(MakeSchedule(train, 100).warmup_steps, 3);
  EXPECT_EQ(MakeSchedule(train, 101).warmup_steps, 4);
  train.warmup_steps = 7;
  EXPECT_EQ(MakeSchedule(train, 100).warmup_steps, 7);
}

TEST(GlobalNorm, AnyOrderOfChunks_SameBits) {
  std::vector<float> values(50001);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = std::sin(static_cast<float>(i));
  }
  const double norm = GlobalNorm(values, kSerial);
  EXPECT_EQ(norm, GlobalNorm(values, kBackwards));
  EXPECT_NEAR(norm, std::sqrt(25000.5), 0.1);
  EXPECT_EQ(GlobalNorm({}, kSerial), 0);
}

// The published algorithm in float64.
struct Reference {
  double m = 0, v = 0;
  double Step(int t, double lr, double wd, double clip, double p, double g) {
    g *= clip;
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    const double m_hat = m / (1 - std::pow(0.9, t));
    const double v_hat = v / (1 - std::pow(0.999, t));
    return p - lr * wd * p - lr * m_hat / (std::sqrt(v_hat) + 1e-8);
  }
};

TEST(AdamW, ManySteps_FollowTheReference) {
  const int64_t n = 40000;
  AdamWOptions options;
  options.weight_decay = 0.1;
  options.max_grad_norm = 1;
  AdamW adamw(options, {{0, n / 2, true}, {n / 2, n / 2, false}}, n, kSerial);
  AdamW split(options, {{0, n / 2, true}, {n / 2, n / 2, false}}, n,
              kBackwards);
  std::vector<float> params(n, 0.5f), other(n, 0.5f), grads(n);
  Reference decayed, plain;
  double p0 = 0.5, p1 = 0.5;
  for (int t = 1; t <= 50; ++t) {
    const double g = std::sin(t) * 0.01;
    std::fill(grads.begin(), grads.end(), static_cast<float>(g));
    const double norm = GlobalNorm(grads, kSerial);
    const double clip = std::min(1.0, 1 / (norm + 1e-6));
    adamw.Step(t, 1e-2, norm, params, grads);
    EXPECT_EQ(std::accumulate(grads.begin(), grads.end(), 0.0f), 0.0f);
    std::fill(grads.begin(), grads.end(), static_cast<float>(g));
    split.Step(t, 1e-2, norm, other, grads);
    p0 = decayed.Step(t, 1e-2, 0.1, clip, p0, g);
    p1 = plain.Step(t, 1e-2, 0.0, clip, p1, g);
  }
  EXPECT_NEAR(params[0], p0, 2e-6);
  EXPECT_NEAR(params[n - 1], p1, 2e-6);
  EXPECT_EQ(params, other);
}

}  // namespace
}  // namespace qlora::trainer
