#include "kernels/head_loss.h"

#include "tests/unit/kernels/plain_gemm.h"
#include "tests/unit/kernels/property.h"

namespace qlora::kernels {
namespace {

struct Setting {
  HeadLoss op;
  std::vector<int32_t> targets;
  bool backward = true;
  bool trained = false;
};

Setting RandomSetting(Random& random, int64_t tokens, int64_t vocab) {
  Setting s;
  s.op.options.scale = random.Chance(0.5) ? 1.0f : 0.25f;
  if (random.Chance(0.3)) s.op.options.label_smoothing = 0.1f;
  if (random.Chance(0.3)) s.op.options.z_loss = 1e-2f;
  if (random.Chance(0.3)) s.op.options.soft_cap = 10;
  s.op.chunk = random.Int(1, 6);
  s.op.gemm = PlainGemm;
  const double ignored = random.Chance(0.5) ? 0.3 : 0;
  for (int64_t r = 0; r <= tokens; ++r) {
    s.targets.push_back(random.Chance(ignored)
                            ? -100
                            : static_cast<int32_t>(random.Int(0, vocab - 1)));
  }
  return s;
}

// x, weight, dx, dweight, loss (as float32).
Result RunOn(const Setting& s, const Backend& backend, const Launch& launch,
             const Buffers& m) {
  std::vector<double> loss(m[0].rows() + 1);
  HeadLoss op = s.op;
  op.x = m[0].view();
  op.weight = m[1].view();
  op.targets = s.targets.data();
  op.loss = loss.data();
  if (s.backward) op.dx = m[2].view();
  if (s.trained) op.dweight = m[3].view();
  const Result result = RunWithRoom(backend, launch, op);
  for (int64_t r = 0; r < m[0].rows(); ++r) {
    m[4].row(0)[r] = static_cast<float>(loss[r]);
  }
  return result;
}

Buffers MakeBuffers(Random& random, Dtype dtype, int64_t tokens, int64_t hidden,
                    int64_t vocab) {
  return {Matrix(random, dtype, tokens, hidden),
          Matrix(random, random.AnyType(), vocab, hidden),
          Matrix(random, dtype, tokens, hidden),
          Matrix(random, Dtype::kFloat32, vocab, hidden),
          Matrix(random, Dtype::kFloat32, 1, tokens + 1)};
}

// Not within a row of an infinity, whose products may be NaN or not.
Case LossCase(Random& random) {
  const int64_t tokens = random.Int(0, 12), hidden = random.Int(1, 24),
                vocab = random.Int(1, 40);
  const Dtype dtype = random.CommonType();
  const Buffers b = MakeBuffers(random, dtype, tokens, hidden, vocab);
  Setting s = RandomSetting(random, tokens, vocab);
  s.backward = random.Chance(0.8);
  s.trained = s.backward && random.Chance(0.5);
  const auto run = [=](const Backend& backend, const Launch& launch,
                       const Buffers& m) {
    return RunOn(s, backend, launch, m);
  };
  const auto magnitude = [=](size_t i, int64_t, const Buffers& m,
                             const Buffers&) {
    const double unit = dtype == Dtype::kBfloat16 ? 0x1p16 : 1;
    const double l = 1 +
                     LongestVector(m[0], hidden) * LongestVector(m[1], hidden) +
                     std::log(static_cast<double>(vocab));
    const double g = s.op.options.scale * (1 + 2 * s.op.options.z_loss * l) * l;
    if (i == 2) return unit * g * m[1].Max();
    if (i == 3) return unit * g * m[0].Max() * static_cast<double>(tokens);
    return i == 4 ? unit * l * (1 + s.op.options.z_loss * l) : 0;
  };
  return {b, run, magnitude};
}

TEST(HeadLossTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kHeadLossError, LossCase);
}

TEST(HeadLossTest, Reference_FollowsDifferences) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Random random(seed);
    Buffers b = MakeBuffers(random, Dtype::kFloat32, 3, 4, 5);
    b[1] = Matrix(random, Dtype::kFloat32, 5, 4);
    Setting s = RandomSetting(random, 3, 5);
    s.trained = true;
    const Matrix before = b[3];
    ASSERT_EQ(RunOn(s, ReferenceBackend(), {}, b), Result::kOk);
    Matrix dweight = b[3];
    for (int64_t r = 0; r < 5; ++r) {
      for (int64_t c = 0; c < 4; ++c) {
        Set(dweight.view(), r, c, b[3].at(r, c) - before.at(r, c));
      }
    }
    const auto loss_with = [&](int which) {
      return [&, which](const Matrix& m) {
        Buffers changed = b;
        changed[which] = m;
        RunOn(s, ReferenceBackend(), {}, changed);
        double sum = 0;
        for (int64_t r = 0; r < 3; ++r) sum += changed[4].at(0, r);
        return sum * s.op.options.scale;
      };
    };
    CheckGradient(b[0], b[2], loss_with(0));
    CheckGradient(b[1], dweight, loss_with(1));
  }
}

// A weight of another type in more than one panel, each with a target; that of
// x's type takes one product but for the weight's gradient.
void CheckPanels(Dtype dtype, Dtype other, double tolerance) {
  const int64_t hidden = 1 << 16, vocab = 37;
  Random random(3);
  Buffers b = MakeBuffers(random, dtype, 3, hidden, vocab);
  b[0] = Matrix(random, dtype, 3, hidden, 0.1f);
  // Every value is one of both types.
  const Matrix weight(random, Dtype::kBfloat16, vocab, hidden, 0.1f);
  Buffers whole = b;
  b[1] = Matrix(random, other, vocab, hidden);
  whole[1] = Matrix(random, dtype, vocab, hidden);
  for (const View& v : {b[1].view(), whole[1].view()}) {
    ASSERT_EQ(ReferenceBackend().Run({}, Convert{weight.view(), v}),
              Result::kOk);
  }
  Setting s = RandomSetting(random, 3, vocab);
  s.targets = {3, 20, 36};
  s.trained = true;
  const Buffers want = b;
  ASSERT_EQ(RunOn(s, ReferenceBackend(), {}, want), Result::kOk);
  const auto close = [=](int64_t) { return tolerance; };
  for (const Backend* backend : CpuBackends()) {
    const Buffers panels = b, one = whole;
    ASSERT_EQ(RunOn(s, *backend, {}, panels), Result::kOk);
    ASSERT_EQ(RunOn(s, *backend, {}, one), Result::kOk);
    ExpectClose(panels[2], one[2], close);
    ExpectClose(panels[3], want[3], close);
    ExpectClose(panels[4], one[4], nullptr);
  }
}

TEST(HeadLossTest, Panels_GiveWhatOneProductGives) {
  CheckPanels(Dtype::kFloat32, Dtype::kBfloat16, 1e-6);
  CheckPanels(Dtype::kBfloat16, Dtype::kFloat32, 2e-3);
}

// Rows 1 and 2 of four, the second of which is ignored.
TEST(HeadLossTest, SpoiledRow_SpoilsNoOther) {
  for (const Backend* backend : EveryBackend()) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      for (const bool trained : {false, true}) {
        Random random(5);
        Buffers b = MakeBuffers(random, Dtype::kFloat32, 4, 8, 9);
        Setting s;
        s.op.gemm = PlainGemm;
        s.targets = {1, 2, -1, 3};
        s.trained = trained;
        Set(b[0].view(), 1, 3, bad);
        Set(b[0].view(), 2, 3, bad);
        ASSERT_EQ(RunOn(s, *backend, {}, b), Result::kOk);
        EXPECT_TRUE(std::isnan(b[4].at(0, 1)));
        EXPECT_EQ(b[4].at(0, 2), 0);
        for (const int64_t r : {0, 3})
          EXPECT_TRUE(std::isfinite(b[4].at(0, r)));
        for (int64_t c = 0; c < 8; ++c) {
          EXPECT_TRUE(std::isfinite(b[2].at(0, c)));
          EXPECT_TRUE(std::isnan(b[2].at(1, c)));
          EXPECT_EQ(b[2].at(2, c), 0);
          EXPECT_TRUE(std::isfinite(b[2].at(3, c)));
          EXPECT_EQ(std::isnan(b[3].at(0, c)), trained);
        }
      }
    }
  }
}

TEST(HeadLossTest, SpoiledIgnoredRow_SpoilsNoWeight) {
  for (const Backend* backend : EveryBackend()) {
    Random random(5);
    Buffers b = MakeBuffers(random, Dtype::kFloat32, 4, 8, 9);
    Setting s;
    s.op.gemm = PlainGemm;
    s.targets = {1, -1, -1, 3};
    s.trained = true;
    Set(b[0].view(), 1, 0, NAN);
    Set(b[0].view(), 2, 7, INFINITY);
    ASSERT_EQ(RunOn(s, *backend, {}, b), Result::kOk);
    for (int64_t r = 0; r < 9; ++r) {
      for (int64_t c = 0; c < 8; ++c) {
        EXPECT_TRUE(std::isfinite(b[3].at(r, c))) << r << "," << c;
      }
    }
  }
}

// A row of the weight that makes a logit of +inf spoils every loss; one that
// makes -inf is a token that cannot be.
TEST(HeadLossTest, InfiniteWeight_AsALogitOfItsSign) {
  for (const Backend* backend : EveryBackend()) {
    Random random(6);
    Buffers b = MakeBuffers(random, Dtype::kFloat32, 2, 3, 5);
    for (const int64_t r : {0, 1}) Set(b[0].view(), r, 2, 1.5f);
    Setting s;
    s.op.gemm = PlainGemm;
    s.targets = {1, 3};
    s.backward = false;
    Set(b[1].view(), 4, 2, INFINITY);
    ASSERT_EQ(RunOn(s, *backend, {}, b), Result::kOk);
    for (const int64_t r : {0, 1}) EXPECT_TRUE(std::isnan(b[4].at(0, r)));
    Set(b[1].view(), 4, 2, -INFINITY);
    ASSERT_EQ(RunOn(s, *backend, {}, b), Result::kOk);
    Buffers shorter = b;
    shorter[1] = Matrix(random, b[1].view().dtype, 4, 3);
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 3; ++c) {
        Set(shorter[1].view(), r, c, b[1].at(r, c));
      }
    }
    ASSERT_EQ(RunOn(s, *backend, {}, shorter), Result::kOk);
    for (const int64_t r : {0, 1}) {
      EXPECT_NEAR(b[4].at(0, r), shorter[4].at(0, r), 1e-5);
    }
  }
}

TEST(HeadLossTest, NoTokens_LeaveEverythingAlone) {
  for (const Backend* backend : EveryBackend()) {
    Random random(8);
    const Buffers b = MakeBuffers(random, Dtype::kFloat32, 0, 3, 5);
    const Buffers before = b;
    const HeadLoss op = {.x = b[0].view(),
                         .weight = b[1].view(),
                         .gemm = PlainGemm,
                         .dx = b[2].view(),
                         .dweight = b[3].view()};
    ASSERT_EQ(RunWithRoom(*backend, {}, op), Result::kOk);
    ExpectClose(b[3], before[3], nullptr);
  }
}

TEST(HeadLossTest, BadArguments_AreRejected) {
  float x[4] = {1, 2, 3, 4}, weight[6] = {}, dx[4] = {7}, dweight[6] = {};
  const int32_t targets[] = {0, 1};
  double loss[2] = {7, 7};
  alignas(64) char room[4096];
  const HeadLoss good = {.x = FloatView(x, 2, 2),
                         .weight = FloatView(weight, 3, 2),
                         .targets = targets,
                         .gemm = PlainGemm,
                         .loss = loss,
                         .dx = FloatView(dx, 2, 2),
                         .dweight = FloatView(dweight, 3, 2)};
  const auto rejected = [&](auto change) {
    HeadLoss op = good;
    change(op);
    ExpectRejected(op, {.workspace = room, .workspace_bytes = sizeof room});
    EXPECT_EQ(loss[0], 7);
    EXPECT_EQ(dx[0], 7);
  };
  rejected([](HeadLoss& op) { op.chunk = 0; });
  rejected([](HeadLoss& op) { op.gemm = nullptr; });
  rejected([](HeadLoss& op) { op.targets = nullptr; });
  rejected([](HeadLoss& op) { op.loss = nullptr; });
  rejected([](HeadLoss& op) { op.x.dtype = Dtype::kFloat16; });
  rejected([](HeadLoss& op) { op.weight.columns = 1; });
  rejected([](HeadLoss& op) { op.weight.rows = 0; });
  rejected([](HeadLoss& op) { op.dx.dtype = Dtype::kBfloat16; });
  rejected([](HeadLoss& op) { op.dx = {}; });  // but dweight
  rejected([](HeadLoss& op) { op.dweight.rows = 2; });
  rejected([](HeadLoss& op) { op.options.label_smoothing = 1; });
  rejected([](HeadLoss& op) { op.options.z_loss = NAN; });
  const int32_t beyond[] = {0, 3};
  rejected([&](HeadLoss& op) { op.targets = beyond; });
  ExpectRejected(good);  // no workspace
  ExpectAccepted(good);
}

TEST(HeadLossTest, SizesBeyondTheLimits_AreRejected) {
  float x[2] = {}, weight[2] = {};
  const int32_t target = 0;
  double loss = 0;
  HeadLoss op = {.x = FloatView(x, int64_t{1} << 31, 2),
                 .weight = FloatView(weight, 1, 2),
                 .targets = &target,
                 .gemm = PlainGemm,
                 .loss = &loss};
  // As if there were room.
  alignas(64) char room[64];
  const Launch launch = {.workspace = room, .workspace_bytes = INT64_MAX};
  ExpectRejected(op, launch);
  // A chunk of logits with 2^60 elements.
  op.x.rows = op.chunk = int64_t{1} << 30;
  op.weight.rows = int64_t{1} << 30;
  ExpectRejected(op, launch);
}

TEST(HeadLossTest, WorkspaceOfBadArguments_IsNone) {
  HeadLoss op = {.x = FloatView(nullptr, 3, 2),
                 .weight = FloatView(nullptr, 5, 2)};
  for (const Backend* backend : EveryBackend()) {
    EXPECT_GT(backend->WorkspaceBytes(op, 1), 0);
  }
  op.x.columns = op.weight.columns = 0;
  for (const Backend* backend : EveryBackend()) {
    EXPECT_EQ(backend->WorkspaceBytes(op, 1), 0);
  }
}

}  // namespace
}  // namespace qlora::kernels
