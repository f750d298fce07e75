#include "tests/unit/kernels/property.h"

namespace qlora::kernels {
namespace {

CrossEntropy RandomLoss(Random& random) {
  CrossEntropy op;
  LossOptions& o = op.options;
  o.scale = random.Chance(0.5) ? 1.0f : std::fabs(random.Normal());
  if (random.Chance(0.4)) o.label_smoothing = 0.1f;
  if (random.Chance(0.4)) o.z_loss = 1e-2f;
  if (random.Chance(0.4)) o.soft_cap = 10;
  op.backward = random.Chance(0.7);
  return op;
}

// logits, loss (as float32, a row).
Case LossCase(Random& random) {
  const Random::Shape shape = random.AnyShape(4);
  const int64_t rows = shape.rows, n = shape.columns;
  Buffers b = {Matrix(random, random.CommonType(), rows, n,
                      random.Chance(0.2) ? 40.0f : 3.0f),
               Matrix(random, Dtype::kFloat32, 1, rows + 1)};
  if (random.Chance(0.2)) b[0].Spoil(random);
  const CrossEntropy loss_op = RandomLoss(random);
  const LossOptions options = loss_op.options;
  std::vector<int32_t> targets(rows + 1);
  for (int32_t& t : targets) {
    t = random.Chance(0.2) ? -100 : static_cast<int32_t>(random.Int(0, n - 1));
  }
  const auto run = [=](const Backend& backend, const Launch& launch,
                       const Buffers& m) {
    std::vector<double> loss(rows + 1);
    CrossEntropy op = loss_op;
    op.logits = m[0].view();
    op.targets = targets.data();
    op.loss = loss.data();
    const Result result = backend.Run(launch, op);
    for (int64_t r = 0; r < rows; ++r) {
      m[1].row(0)[r] = static_cast<float>(loss[r]);
    }
    return result;
  };
  const auto magnitude = [=](size_t i, int64_t r, const Buffers& m,
                             const Buffers&) {
    const auto bound = [&](int64_t row) {
      const double largest = m[0].MaxOfRow(row);
      return 1 + std::log(static_cast<double>(n)) +
             (options.soft_cap > 0 ? std::min<double>(largest, options.soft_cap)
                                   : largest);
    };
    if (i == 0) {
      return options.scale * (1 + 2 * options.z_loss * bound(r)) *
             (1 + bound(r));
    }
    double most = 0;
    for (int64_t row = 0; row < rows; ++row) {
      most = std::max(most, bound(row) * (1 + options.z_loss * bound(row)));
    }
    return most;
  };
  return {b, run, magnitude};
}

TEST(CrossEntropyTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kCrossEntropyError, LossCase);
}

TEST(CrossEntropyTest, Reference_FollowsDifferences) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Random random(seed);
    CrossEntropy op = RandomLoss(random);
    op.backward = true;
    const Matrix logits(random, Dtype::kFloat32, 2, 6, 3), gradient = logits;
    const std::vector<int32_t> targets = {1, 5};
    std::vector<double> loss(2);
    op.targets = targets.data();
    op.loss = loss.data();
    op.logits = gradient.view();
    ASSERT_EQ(ReferenceBackend().Run({}, op), Result::kOk);
    op.backward = false;
    CheckGradient(logits, gradient, [&](const Matrix& m) {
      op.logits = m.view();
      ReferenceBackend().Run({}, op);
      return op.options.scale * (loss[0] + loss[1]);
    });
  }
}

TEST(CrossEntropyTest, InfinitiesAndNan_AsTheHeaderSays) {
  for (const Backend* backend : EveryBackend()) {
    std::vector<float> logits = {3e4f, -INFINITY, 3e4f, -3e4f, 0};
    const int32_t target = 0;
    double loss = 0;
    const CrossEntropy op{.logits = FloatView(logits.data(), 1, 5),
                          .targets = &target,
                          .backward = true,
                          .loss = &loss};
    backend->Run({}, op);
    EXPECT_NEAR(loss, std::log(2.0), kCrossEntropyError * 0x1p-24 * 3e4);
    EXPECT_NEAR(logits[0], -0.5, 1e-6);
    EXPECT_EQ(logits[1], 0);
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      logits.assign(5, bad == -INFINITY ? bad : 1.0f);
      logits[3] = bad;
      backend->Run({}, op);
      EXPECT_TRUE(std::isnan(loss)) << bad;
      for (const float g : logits) EXPECT_TRUE(std::isnan(g)) << bad;
    }
  }
}

TEST(CrossEntropyTest, BadArguments_AreRejected) {
  float logits[2] = {1, 2};
  const int32_t target = 0;
  double loss = 7;
  const CrossEntropy good{
      .logits = FloatView(logits, 1, 2), .targets = &target, .loss = &loss};
  const auto rejected = [&](auto change) {
    CrossEntropy op = good;
    change(op);
    ExpectRejected(op);
    EXPECT_EQ(loss, 7);
  };
  rejected([](CrossEntropy& op) { op.options.label_smoothing = 1; });
  rejected([](CrossEntropy& op) { op.options.label_smoothing = NAN; });
  rejected([](CrossEntropy& op) { op.options.z_loss = -1; });
  rejected([](CrossEntropy& op) { op.options.soft_cap = -1; });
  rejected([](CrossEntropy& op) { op.targets = nullptr; });
  rejected([](CrossEntropy& op) { op.loss = nullptr; });
  rejected([](CrossEntropy& op) { op.logits.data = nullptr; });
  const int32_t beyond = 2;
  CrossEntropy op = good;
  op.targets = &beyond;
  ExpectRejectedOnHost(op);
  EXPECT_EQ(loss, 7);
  ExpectAccepted(good);
}

}  // namespace
}  // namespace qlora::kernels
