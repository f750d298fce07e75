#include "tests/unit/kernels/property.h"

namespace qlora::kernels {
namespace {

// Now and then more chunks than the grid of the emulated device has blocks.
int64_t RandomSize(Random& random) {
  return random.Chance(0.005) ? random.Int(16000, 90000) : random.Int(0, 700);
}

AdamW RandomStep(Random& random, int64_t n) {
  AdamW op;
  op.n = n;
  op.learning_rate = 1e-2 * std::fabs(random.Normal());
  op.weight_decay = random.Chance(0.5) ? 0.1 : 0;
  op.step = random.Int(1, 2000);
  op.max_grad_norm = random.Chance(0.5) ? 1 : 0;
  return op;
}

// All bits of a sum, or those that its order leaves alone; one NaN for all.
void StoreSum(double sum, const Matrix& bits) {
  if (AreDevices()) sum = static_cast<float>(sum);
  if (std::isnan(sum)) sum = NAN;
  std::memcpy(bits.row(0), &sum, sizeof sum);
}

// Sums are in the last buffer.
Result RunAdamW(const Backend& backend, const Launch& launch, AdamW op,
                double squares, bool summed, const Matrix& bits) {
  op.clip_sum_of_squares = &squares;
  double sum = 0;
  if (summed) op.grad_sum_of_squares = &sum;
  const Result result = RunWithRoom(backend, launch, op);
  StoreSum(sum, bits);
  return result;
}

// param, grad, exp_avg, exp_avg_sq, sum of squares.
Case AdamWCase(Random& random) {
  const int64_t n = RandomSize(random);
  Buffers b;
  for (int i = 0; i < 4; ++i) {
    b.emplace_back(random, Dtype::kFloat32, 1, n + 1);
  }
  b.emplace_back(random, Dtype::kFloat32, 1, 2, 0);
  for (int64_t i = 0; i < n; ++i) b[3].row(0)[i] = std::fabs(b[3].row(0)[i]);
  if (random.Chance(0.1)) b[random.Int(0, 3)].Spoil(random);
  const AdamW op = RandomStep(random, n);
  const double squares = random.Chance(0.05) ? NAN : std::exp(random.Normal());
  const bool summed = random.Chance(0.5);
  return {b,
          [=](const Backend& backend, const Launch& launch, const Buffers& m) {
            AdamW call = op;
            call.param = m[0].row(0);
            call.grad = m[1].row(0);
            call.moments.exp_avg = m[2].row(0);
            call.moments.exp_avg_sq = m[3].row(0);
            return RunAdamW(backend, launch, call, squares, summed, m[4]);
          },
          nullptr};
}

// param, grad, scales, codes as numbers, the same of squares, sum of squares.
Case CodedAdamWCase(Random& random) {
  const int64_t n = RandomSize(random);
  const int64_t blocks = n / kMomentBlockSize + 1;
  Buffers b;
  for (const int64_t size : {n + 1, n + 1, blocks, n + 1, blocks, n + 1}) {
    b.emplace_back(random, Dtype::kFloat32, 1, size);
  }
  b.emplace_back(random, Dtype::kFloat32, 1, 2, 0);
  for (const int i : {2, 4}) {
    for (int64_t block = 0; block < blocks; ++block) {
      b[i].row(0)[block] = std::fabs(b[i].row(0)[block]);
    }
  }
  constexpr int kInputs[] = {0, 1, 2, 4};
  if (random.Chance(0.2)) b[kInputs[random.Int(0, 3)]].Spoil(random);
  const AdamW op = RandomStep(random, n);
  const bool summed = random.Chance(0.5);
  std::vector<uint8_t> codes(2 * n + 2);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random.Int(0, 255));
  return {b,
          [=](const Backend& backend, const Launch& launch, const Buffers& m) {
            std::vector<uint8_t> mine = codes;
            AdamW call = op;
            call.param = m[0].row(0);
            call.grad = m[1].row(0);
            call.moments.exp_avg_scale = m[2].row(0);
            call.moments.exp_avg_codes = mine.data();
            call.moments.exp_avg_sq_scale = m[4].row(0);
            call.moments.exp_avg_sq_codes = mine.data() + n + 1;
            const Result result =
                RunAdamW(backend, launch, call, 2.0, summed, m[6]);
            std::copy_n(mine.begin(), n + 1, m[3].row(0));
            std::copy_n(mine.begin() + n + 1, n + 1, m[5].row(0));
            return result;
          },
          nullptr};
}

TEST(AdamWTest, CodedMoments_SameBits) {
  CheckAgainstReference(0, CodedAdamWCase);
}

// One step from nothing: the moments are those of float32, to a code.
TEST(AdamWTest, CodedMoments_FollowPlainOnes) {
  const int64_t n = 300;
  std::vector<float> param(n, 1.0f), grad(n), plain(n, 1.0f), m(n), v(n);
  for (int64_t i = 0; i < n; ++i) grad[i] = std::sin(static_cast<float>(i));
  std::vector<float> again = grad;
  // Codes of 0 at a scale of 0.
  std::vector<uint8_t> codes(n), sq_codes(n);
  float scale[2] = {}, sq_scale[2] = {};
  AdamW op;
  op.n = n;
  op.learning_rate = 1e-2;
  op.param = plain.data();
  op.grad = grad.data();
  op.moments.exp_avg = m.data();
  op.moments.exp_avg_sq = v.data();
  ASSERT_EQ(ReferenceBackend().Run({}, op), Result::kOk);
  op.param = param.data();
  op.grad = again.data();
  op.moments = {.exp_avg_codes = codes.data(),
                .exp_avg_scale = scale,
                .exp_avg_sq_codes = sq_codes.data(),
                .exp_avg_sq_scale = sq_scale};
  ASSERT_EQ(ReferenceBackend().Run({}, op), Result::kOk);
  EXPECT_EQ(param, plain);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t block = i / kMomentBlockSize;
    EXPECT_NEAR(kDynamicMapSigned[codes[i]] * scale[block], m[i],
                0.01 * scale[block]);
    EXPECT_NEAR(kDynamicMapUnsigned[sq_codes[i]] * sq_scale[block], v[i],
                0.01 * sq_scale[block]);
  }
}

TEST(AdamWTest, EveryBackend_SameBits) { CheckAgainstReference(0, AdamWCase); }

Case SumCase(Random& random) {
  const int64_t n = RandomSize(random);
  Buffers b = {Matrix(random, Dtype::kFloat32, 1, n + 1),
               Matrix(random, Dtype::kFloat32, 1, 2, 0)};
  if (random.Chance(0.1)) b[0].Spoil(random);
  return {b,
          [=](const Backend& backend, const Launch& launch, const Buffers& m) {
            double sum = 0;
            const Result result = RunWithRoom(
                backend, launch, SumOfSquares{n, m[0].row(0), &sum});
            double plain = 0;
            for (int64_t i = 0; i < n; ++i) {
              plain += double{m[0].row(0)[i]} * m[0].row(0)[i];
            }
            if (std::isfinite(plain)) {
              EXPECT_NEAR(sum, plain, 1e-12 * plain);
            } else {
              EXPECT_EQ(std::isnan(sum), std::isnan(plain));
            }
            StoreSum(sum, m[1]);
            return result;
          },
          nullptr};
}

TEST(SumOfSquaresTest, EveryBackend_SameBits) {
  CheckAgainstReference(0, SumCase);
}

// More chunks than the one block that adds them has threads.
TEST(SumOfSquaresTest, ManyChunks_AddUp) {
  const std::vector<float> x(4096 * 300 + 5, 0.5f);
  const auto n = static_cast<int64_t>(x.size());
  for (const Backend* backend : EveryBackend()) {
    double sum = 0;
    ASSERT_EQ(RunWithRoom(*backend, {}, SumOfSquares{n, x.data(), &sum}),
              Result::kOk);
    EXPECT_EQ(sum, 0.25 * static_cast<double>(n)) << backend->name();
  }
}

TEST(OptimizerTest, NothingToDo_GivesSumsOfZero) {
  for (const Backend* backend : EveryBackend()) {
    double sum = 7;
    ASSERT_EQ(RunWithRoom(*backend, {}, SumOfSquares{0, nullptr, &sum}),
              Result::kOk);
    EXPECT_EQ(sum, 0);
    AdamW op;
    ASSERT_EQ(RunWithRoom(*backend, {}, op), Result::kOk);
    sum = 7;
    op.grad_sum_of_squares = &sum;
    ASSERT_EQ(RunWithRoom(*backend, {}, op), Result::kOk);
    EXPECT_EQ(sum, 0);
  }
}

// A scale that is not finite spoils its block's moments and leaves codes that
// QuantizeDynamic defines.
TEST(AdamWTest, SpoiledScale_SpoilsItsBlock) {
  const int64_t n = kMomentBlockSize + 3;
  for (const Backend* backend : EveryBackend()) {
    for (const float bad : {NAN, INFINITY}) {
      std::vector<float> param(n, 1.0f), grad(n, 0.5f);
      std::vector<uint8_t> codes(n, 200), sq_codes(n, 200);
      float scale[2] = {bad, 1}, sq_scale[2] = {1, 1};
      AdamW op;
      op.n = n;
      op.param = param.data();
      op.grad = grad.data();
      op.moments = {.exp_avg_codes = codes.data(),
                    .exp_avg_scale = scale,
                    .exp_avg_sq_codes = sq_codes.data(),
                    .exp_avg_sq_scale = sq_scale};
      op.learning_rate = 0.1;
      ASSERT_EQ(RunWithRoom(*backend, {}, op), Result::kOk);
      // Infinity moves towards the gradient by infinity: NaN both times, which
      // does not count for a scale.
      EXPECT_EQ(scale[0], 0);
      for (int64_t i = 0; i < n; ++i) {
        EXPECT_EQ(grad[i], 0);
        EXPECT_EQ(std::isfinite(param[i]), i >= kMomentBlockSize) << i;
        EXPECT_EQ(codes[i] == 0, i < kMomentBlockSize) << i;
      }
    }
  }
}

// The published algorithm in float64.
TEST(AdamWTest, ManySteps_FollowThePublishedAlgorithm) {
  double m = 0, v = 0, expected = 0.5;
  float param = 0.5f, exp_avg = 0, exp_avg_sq = 0;
  for (int t = 1; t <= 50; ++t) {
    float grad = std::sin(static_cast<float>(t)) * 0.1f;
    m = 0.9 * m + 0.1 * grad;
    v = 0.999 * v + 0.001 * double{grad} * grad;
    expected -= 1e-2 * 0.1 * expected +
                1e-2 * (m / (1 - std::pow(0.9, t))) /
                    (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8);
    AdamW op;
    op.n = 1;
    op.param = &param;
    op.grad = &grad;
    op.moments.exp_avg = &exp_avg;
    op.moments.exp_avg_sq = &exp_avg_sq;
    op.learning_rate = 1e-2;
    op.weight_decay = 0.1;
    op.step = t;
    ASSERT_EQ(ReferenceBackend().Run({}, op), Result::kOk);
    EXPECT_EQ(grad, 0);
  }
  EXPECT_NEAR(param, expected, 2e-6);
}

TEST(OptimizerTest, BadArguments_AreRejected) {
  float x[4] = {1, 2, 3, 4};
  AdamW good;
  good.n = 4;
  good.param = good.grad = x;
  good.moments.exp_avg = good.moments.exp_avg_sq = x;
  const auto rejected = [&](auto change) {
    AdamW op = good;
    change(op);
    ExpectRejected(op);
    EXPECT_EQ(x[0], 1);
  };
  double sum = 0;
  rejected([](AdamW& op) { op.n = -1; });
  rejected([](AdamW& op) { op.param = nullptr; });
  rejected([](AdamW& op) { op.moments.exp_avg = nullptr; });
  rejected([](AdamW& op) { op.step = 0; });
  rejected([](AdamW& op) { op.beta1 = 1; });
  rejected([](AdamW& op) { op.beta2 = -0.1; });
  rejected([](AdamW& op) { op.epsilon = NAN; });
  rejected([](AdamW& op) { op.max_grad_norm = 1; });
  // The reference needs no workspace.
  for (const Backend* backend : TestedBackends()) {
    AdamW op = good;
    op.grad_sum_of_squares = &sum;
    EXPECT_EQ(backend->Run({}, op), Result::kInvalidArgument);
    EXPECT_EQ(backend->Run({}, SumOfSquares{4, x, &sum}),
              Result::kInvalidArgument);
  }
  alignas(64) char room[64];
  const Launch launch = {.workspace = room, .workspace_bytes = sizeof room};
  ExpectRejected(SumOfSquares{4, x, nullptr}, launch);
  ExpectRejected(SumOfSquares{4, nullptr, &sum}, launch);
  ExpectRejected(SumOfSquares{-1, x, &sum}, launch);
  ExpectAccepted(good);
}

TEST(AdamWTest, OneSum_IsReadAndThenWritten) {
  for (const Backend* backend : EveryBackend()) {
    float param = 1, grad = 4, exp_avg = 0, exp_avg_sq = 0;
    double sum = 64;
    AdamW op;
    op.n = 1;
    op.param = &param;
    op.grad = &grad;
    op.moments.exp_avg = &exp_avg;
    op.moments.exp_avg_sq = &exp_avg_sq;
    op.max_grad_norm = 1;
    op.clip_sum_of_squares = op.grad_sum_of_squares = &sum;
    ASSERT_EQ(RunWithRoom(*backend, {}, op), Result::kOk);
    // A norm of 8, not of 4: the gradient becomes 4 / 8.
    EXPECT_NEAR(exp_avg, 0.05, 1e-6) << backend->name();
    EXPECT_EQ(sum, 16);
  }
}

TEST(AdamWTest, HalfSetMoments_AreRejected) {
  float x[1] = {1};
  uint8_t codes[1] = {};
  AdamW good;
  good.n = 1;
  good.param = good.grad = x;
  good.moments = {.exp_avg_codes = codes,
                  .exp_avg_scale = x,
                  .exp_avg_sq_codes = codes,
                  .exp_avg_sq_scale = x};
  AdamW op = good;
  op.moments.exp_avg = x;
  ExpectRejected(op);
  op.moments.exp_avg_sq = x;
  ExpectRejected(op);
  op = good;
  op.moments.exp_avg_sq_scale = nullptr;
  ExpectRejected(op);
  EXPECT_EQ(x[0], 1);
}

}  // namespace
}  // namespace qlora::kernels
