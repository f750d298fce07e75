#include "kernels/attention.h"

#include <limits>
#include <memory>

#include "kernels/cpu/cpu_backend.h"
#include "tests/unit/kernels/property.h"

namespace qlora::kernels {
namespace {

// All but the buffers.
struct Setting {
  Attention op;
  std::vector<int32_t> offsets;
  std::vector<int32_t> prefix;
  int64_t rows() const { return offsets.back(); }
};

Setting RandomSetting(Random& random, bool backward) {
  Setting s;
  s.op.kv_heads = static_cast<int>(random.Int(1, 2));
  s.op.heads = s.op.kv_heads * static_cast<int>(random.Int(1, 3));
  // As wide as heads become, with few rows.
  const bool wide = random.Chance(0.02);
  constexpr int kWide[] = {96, 128, 160, 255, 256};
  s.op.dim = wide ? kWide[random.Int(0, 4)]
                  : static_cast<int>(random.Chance(0.05) ? random.Int(33, 80)
                                                         : random.Int(1, 32));
  s.op.documents = random.Int(0, 2);
  s.offsets = {0};
  for (int64_t d = 0; d < s.op.documents; ++d) {
    const int64_t rows =
        !wide && random.Chance(0.05) ? random.Int(60, 140) : random.Int(0, 10);
    s.offsets.push_back(s.offsets.back() + static_cast<int32_t>(rows));
    s.prefix.push_back(static_cast<int32_t>(random.Int(-1, rows + 3)));
  }
  s.op.mask = static_cast<AttentionMask>(random.Int(0, 2));
  if (random.Chance(0.4)) s.op.window = random.Int(1, 70);
  if (random.Chance(0.3)) s.op.soft_cap = 5;
  if (random.Chance(0.3)) s.op.scale = 0.3f;
  if (!backward && s.op.documents == 1 && random.Chance(0.5)) {
    s.op.mask = AttentionMask::kCausal;
    s.op.past = random.Int(0, 150);
  }
  return s;
}

// q, k, v, out, lse (a row a head).
Buffers ForwardBuffers(Random& random, const Setting& s, Dtype dtype) {
  const int64_t wide = int64_t{s.op.heads} * s.op.dim;
  const int64_t narrow = int64_t{s.op.kv_heads} * s.op.dim;
  const int64_t rows = s.rows(), keys = rows + s.op.past;
  return {
      Matrix(random, dtype, rows, wide), Matrix(random, dtype, keys, narrow),
      Matrix(random, dtype, keys, narrow), Matrix(random, dtype, rows, wide),
      Matrix(random, Dtype::kFloat32, 1, s.op.heads * rows + 1)};
}

Attention Bind(const Setting& s, const Buffers& m) {
  Attention op = s.op;
  op.offsets = s.offsets.data();
  op.prefix = s.prefix.data();
  op.q = m[0].view();
  op.k = m[1].view();
  op.v = m[2].view();
  op.out = m[3].view();
  op.lse = m[4].row(0);
  return op;
}

// The header's bound, in units of 2^-24.
struct Bound {
  Bound(const Setting& s, const Buffers& m)
      : dim(s.op.dim),
        scale(s.op.scale != 0 ? s.op.scale : 1 / std::sqrt(double(dim))),
        score(scale * LongestVector(m[0], dim) * LongestVector(m[1], dim)),
        unit((m[0].view().dtype == Dtype::kBfloat16 ? 0x1p16 : 1) *
             (1 + score)) {}
  int dim;
  double scale, score, unit;
};

Case ForwardCase(Random& random) {
  const Setting s = RandomSetting(random, false);
  const Buffers b = ForwardBuffers(random, s, random.CommonType());
  const int threads = static_cast<int>(random.Int(1, 4));
  const auto run = [=](const Backend& backend, const Launch& launch,
                       const Buffers& m) {
    return RunWithRoom(backend, launch, Bind(s, m), threads);
  };
  const auto magnitude = [=](size_t i, int64_t, const Buffers& m,
                             const Buffers& want) {
    const Bound bound(s, m);
    return bound.unit * (want[i].Max() + (i == 4 ? bound.score : m[2].Max()));
  };
  return {b, run, magnitude};
}

// After those of the forward: dout, dq, dk, dv.
Case BackwardCase(Random& random) {
  const Setting s = RandomSetting(random, true);
  const Dtype dtype = random.CommonType();
  Buffers b = ForwardBuffers(random, s, dtype);
  RunWithRoom(ReferenceBackend(), {}, Bind(s, b));
  b.emplace_back(random, dtype, s.rows(), b[0].columns());
  b.emplace_back(random, dtype, s.rows(), b[0].columns());
  b.emplace_back(random, dtype, s.rows(), b[1].columns());
  b.emplace_back(random, dtype, s.rows(), b[1].columns());
  const int threads = static_cast<int>(random.Int(1, 4));
  const auto run = [=](const Backend& backend, const Launch& launch,
                       const Buffers& m) {
    const AttentionBackward op = {.forward = Bind(s, m),
                                  .dout = m[5].view(),
                                  .dq = m[6].view(),
                                  .dk = m[7].view(),
                                  .dv = m[8].view()};
    return RunWithRoom(backend, launch, op, threads);
  };
  const auto magnitude = [=](size_t i, int64_t, const Buffers& m,
                             const Buffers& want) {
    const Bound bound(s, m);
    const double product = bound.scale * LongestVector(m[5], bound.dim) *
                           LongestVector(m[2], bound.dim);
    const double input = i == 8   ? m[5].Max()
                         : i == 7 ? product * m[0].Max()
                                  : product * m[1].Max();
    return bound.unit * (want[i].Max() + input);
  };
  return {b, run, magnitude};
}

TEST(AttentionTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kAttentionError, ForwardCase);
}

TEST(AttentionBackwardTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kAttentionError, BackwardCase);
}

// Every instruction set on every product of tiles, and on the plain one, which
// stands in for those that this processor lacks.
TEST(AttentionTest, BfloatTiles_AsTheReference) {
  std::vector<const Bf16Product*> products(Bf16Products().begin(),
                                           Bf16Products().end());
  products.push_back(&kBf16PlainProduct);
  std::vector<std::unique_ptr<Backend>> owned;
  std::vector<const Backend*> backends;
  for (const NamedKernelSet& set : SupportedKernels()) {
    for (const Bf16Product* product : products) {
      owned.push_back(std::make_unique<CpuBackend>(
          product->name, *set.kernels, QuantizeKernelsFor(set.name), product));
      backends.push_back(owned.back().get());
    }
  }
  CheckAgainstReference(kAttentionError, ForwardCase, 300, backends);
  CheckAgainstReference(kAttentionError, BackwardCase, 300, backends);
}

TEST(Bf16ProductTest, EveryProduct_AsThePlainOne) {
  Random random(9);
  for (const Bf16Product* product : Bf16Products()) {
    for (int i = 0; i < 100; ++i) {
      const int64_t rows = 32 * random.Int(1, 4),
                    columns = 32 * random.Int(1, 5),
                    depth = 32 * random.Int(1, 4);
      const Matrix a(random, Dtype::kBfloat16, rows, depth);
      const Matrix b(random, Dtype::kBfloat16, depth / 2, 2 * columns);
      const bool add = random.Chance(0.5);
      const Matrix got(random, Dtype::kFloat32, rows, columns), want = got;
      // Pairs lie an even number of elements apart.
      const int64_t pairs = (b.view().stride + 1) / 2;
      std::vector<Bf16> packed(depth * pairs);
      for (int64_t k = 0; k < depth / 2; ++k) {
        for (int64_t j = 0; j < 2 * columns; ++j) {
          packed[k * 2 * pairs + j] = ToBf16(b.at(k, j));
        }
      }
      const auto run = [&](const Bf16Product& p, const Matrix& c) {
        if (p.begin != nullptr) p.begin();
        p.multiply(rows, columns, depth, a.view().row<Bf16>(0), a.view().stride,
                   packed.data(), pairs, c.row(0), c.view().stride, add);
        if (p.end != nullptr) p.end();
      };
      run(*product, got);
      run(kBf16PlainProduct, want);
      ASSERT_TRUE(got.CanariesLive());
      ExpectClose(got, want, [&](int64_t) { return 1e-5 * depth; });
    }
  }
}

TEST(AttentionBackwardTest, Reference_FollowsDifferences) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Random random(seed);
    Setting s = RandomSetting(random, true);
    s.op.dim = 3;
    s.offsets = {0, 4, 7};
    s.prefix = {2, 1};
    s.op.documents = 2;
    s.op.window %= 4;
    Buffers b = ForwardBuffers(random, s, Dtype::kFloat32);
    const Matrix dout = b[3], dq = b[0], dk = b[1], dv = b[2];
    RunWithRoom(ReferenceBackend(), {}, Bind(s, b));
    const AttentionBackward op = {.forward = Bind(s, b),
                                  .dout = dout.view(),
                                  .dq = dq.view(),
                                  .dk = dk.view(),
                                  .dv = dv.view()};
    ASSERT_EQ(RunWithRoom(ReferenceBackend(), {}, op), Result::kOk);
    const Matrix* gradients[] = {&dq, &dk, &dv};
    for (int i = 0; i < 3; ++i) {
      CheckGradient(b[i], *gradients[i], [&](const Matrix& x) {
        Buffers changed = b;
        changed[i] = x;
        RunWithRoom(ReferenceBackend(), {}, Bind(s, changed));
        return Weighted(changed[3], dout);
      });
    }
  }
}

// What one call of each direction gives.
struct Results {
  Buffers forward;
  // dq, dk, dv.
  Buffers gradients;
};

Results RunBoth(const Setting& s, const Backend& backend, Buffers inputs,
                const Matrix& dout, int threads) {
  Results r = {std::move(inputs), {}};
  r.gradients = {r.forward[0], r.forward[1], r.forward[2]};
  const AttentionBackward op = {.forward = Bind(s, r.forward),
                                .dout = dout.view(),
                                .dq = r.gradients[0].view(),
                                .dk = r.gradients[1].view(),
                                .dv = r.gradients[2].view()};
  EXPECT_EQ(RunWithRoom(backend, {}, op.forward, threads), Result::kOk);
  EXPECT_EQ(RunWithRoom(backend, {}, op, threads), Result::kOk);
  return r;
}

// The same bits wherever ours(row, key-value head).
template <typename F>
void ExpectSame(const Setting& s, const Results& a, const Results& b, F ours) {
  const int group = s.op.heads / s.op.kv_heads;
  const auto compare = [&](const Matrix& x, const Matrix& y, int64_t per_head) {
    for (int64_t r = 0; r < s.rows(); ++r) {
      for (int64_t c = 0; c < x.columns(); ++c) {
        if (ours(r, c / per_head)) {
          ASSERT_EQ(x.at(r, c), y.at(r, c)) << r << "," << c;
        }
      }
    }
  };
  compare(a.forward[3], b.forward[3], int64_t{group} * s.op.dim);
  compare(a.gradients[0], b.gradients[0], int64_t{group} * s.op.dim);
  compare(a.gradients[1], b.gradients[1], s.op.dim);
  compare(a.gradients[2], b.gradients[2], s.op.dim);
  for (int64_t i = 0; i < s.op.heads * s.rows(); ++i) {
    if (ours(i % s.rows(), i / s.rows() / group)) {
      ASSERT_EQ(a.forward[4].at(0, i), b.forward[4].at(0, i));
    }
  }
}

// Two documents and key-value heads.
Setting TwoByTwo(Random& random) {
  Setting s = RandomSetting(random, true);
  s.op.kv_heads = 2;
  s.op.heads = 4;
  s.offsets = {0, 37, 37 + 300};
  s.prefix = {7, 70};
  s.op.documents = 2;
  return s;
}

TEST(AttentionTest, Threads_DoNotChangeAnything) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Random random(seed);
    const Setting s = TwoByTwo(random);
    const Dtype dtype = random.CommonType();
    const Buffers inputs = ForwardBuffers(random, s, dtype);
    const Matrix dout(random, dtype, s.rows(), inputs[0].columns());
    for (const Backend* backend : CpuBackends()) {
      ExpectSame(s, RunBoth(s, *backend, inputs, dout, 1),
                 RunBoth(s, *backend, inputs, dout, 16),
                 [](int64_t, int64_t) { return true; });
    }
  }
}

// What is not finite in one document and key-value head reaches no other, with
// threads that take several one after the other or parts of one.
TEST(AttentionTest, SpoiledHead_SpoilsNoOther) {
  constexpr float kBad[] = {NAN, INFINITY, -INFINITY};
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Random random(seed);
    const Setting s = TwoByTwo(random);
    const Dtype dtype = random.CommonType();
    const Buffers clean = ForwardBuffers(random, s, dtype);
    const Matrix dout(random, dtype, s.rows(), clean[0].columns());
    const int64_t document = random.Int(0, 1), head = random.Int(0, 1);
    Buffers spoiled = clean;
    const Matrix spoiled_dout = dout;
    for (const View& v : {spoiled[0].view(), spoiled[1].view(),
                          spoiled[2].view(), spoiled_dout.view()}) {
      Set(v, document == 0 ? 20 : 50, head * v.columns / 2, kBad[seed % 3]);
    }
    for (const Backend* backend : CpuBackends()) {
      ExpectSame(
          s, RunBoth(s, *backend, clean, dout, 1),
          RunBoth(s, *backend, spoiled, spoiled_dout, seed % 2 == 0 ? 1 : 16),
          [&](int64_t row, int64_t kv_head) {
            return (row < 37) != (document == 0) || kv_head != head;
          });
      if (HasFatalFailure()) return;
    }
  }
}

TEST(AttentionTest, EmptyDocumentsAndNone_LeaveEverythingAlone) {
  Random random(2);
  Setting s;
  s.op.heads = 2;
  s.op.kv_heads = 1;
  s.op.dim = 4;
  s.prefix = {0, 0, 0};
  const std::vector<std::vector<int32_t>> cases = {{0}, {0, 0}, {0, 0, 3, 3}};
  for (const std::vector<int32_t>& offsets : cases) {
    s.offsets = offsets;
    s.op.documents = std::ssize(offsets) - 1;
    const Buffers b = ForwardBuffers(random, s, Dtype::kFloat32);
    const Matrix dout = b[3];
    for (const Backend* backend : EveryBackend()) {
      const Results r = RunBoth(s, *backend, b, dout, 2);
      for (const Matrix& m : r.forward) EXPECT_TRUE(m.CanariesLive());
      for (const Matrix& m : r.gradients) EXPECT_TRUE(m.CanariesLive());
      for (int64_t c = 0; c < 8 && s.rows() > 0; ++c) {
        // A causal mask leaves the first query its own key only.
        EXPECT_NEAR(r.forward[3].at(0, c), b[2].at(0, c % 4), 1e-6);
      }
      EXPECT_EQ(r.forward[4].at(0, s.op.heads * s.rows()),
                b[4].at(0, s.op.heads * s.rows()));
    }
  }
}

TEST(AttentionTest, LargeScores_StayFinite) {
  for (const Backend* backend : CpuBackends()) {
    Random random(1);
    Setting s;
    s.op.heads = s.op.kv_heads = 1;
    s.op.dim = 16;
    s.offsets = {0, 70};
    s.op.documents = 1;
    Buffers b = ForwardBuffers(random, s, Dtype::kFloat32);
    for (int64_t r = 0; r < 70; ++r) {
      for (int64_t c = 0; c < 16; ++c) Set(b[0].view(), r, c, 3e4f);
    }
    ASSERT_EQ(RunWithRoom(*backend, {}, Bind(s, b)), Result::kOk);
    for (int64_t r = 0; r < 70; ++r) {
      for (int64_t c = 0; c < 16; ++c) {
        ASSERT_LE(std::fabs(b[3].at(r, c)), b[2].Max());
      }
    }
  }
}

// The first keys that a tile of queries visits lie before some rows' windows.
TEST(AttentionTest, LowScoresBehindAWindow_KeepTheirWeights) {
  for (const Backend* backend : CpuBackends()) {
    Random random(1);
    Setting s;
    s.op.heads = s.op.kv_heads = s.op.dim = 1;
    s.op.window = 16;
    s.op.scale = 1;
    s.offsets = {0, 128};
    s.op.documents = 1;
    Buffers b = ForwardBuffers(random, s, Dtype::kFloat32);
    for (int64_t r = 0; r < 128; ++r) {
      Set(b[0].view(), r, 0, 10);
      Set(b[1].view(), r, 0, -10);
      Set(b[2].view(), r, 0, 1);
    }
    ASSERT_EQ(RunWithRoom(*backend, {}, Bind(s, b)), Result::kOk);
    for (int64_t r = 0; r < 128; ++r) ASSERT_NEAR(b[3].at(r, 0), 1, 1e-6) << r;
  }
}

TEST(AttentionTest, WindowBeyondEveryDocument_HidesNothing) {
  Random random(1);
  Setting s;
  s.op.heads = s.op.kv_heads = 1;
  s.op.dim = 8;
  s.offsets = {0, 200};
  s.op.documents = 1;
  for (const AttentionMask mask :
       {AttentionMask::kCausal, AttentionMask::kBidirectional}) {
    s.op.mask = mask;
    const Buffers b = ForwardBuffers(random, s, Dtype::kFloat32);
    Setting windowed = s;
    windowed.op.window = std::numeric_limits<int64_t>::max();
    for (const Backend* backend : CpuBackends()) {
      ExpectSame(s, RunBoth(s, *backend, b, b[3], 4),
                 RunBoth(windowed, *backend, b, b[3], 4),
                 [](int64_t, int64_t) { return true; });
    }
  }
}

TEST(AttentionTest, BadArguments_AreRejected) {
  Random random(1);
  Setting s;
  s.op.heads = 2;
  s.op.kv_heads = 1;
  s.op.dim = 4;
  s.offsets = {0, 2, 5};
  s.prefix = {0, 0};
  s.op.documents = 2;
  Buffers b = ForwardBuffers(random, s, Dtype::kFloat32);
  const Buffers before = b;
  const Matrix dout = b[3], dq = b[0], dk = b[1], dv = b[2];
  const AttentionBackward good = {.forward = Bind(s, b),
                                  .dout = dout.view(),
                                  .dq = dq.view(),
                                  .dk = dk.view(),
                                  .dv = dv.view()};
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<Line> room(4096);
  const Launch launch = {
      .workspace = room.data(),
      .workspace_bytes = static_cast<int64_t>(room.size() * sizeof(Line))};
  const auto expect_unwritten = [&] {
    ExpectClose(b[3], before[3], nullptr);
    ExpectClose(b[4], before[4], nullptr);
    ExpectClose(dq, before[0], nullptr);
  };
  const auto rejected = [&](auto change) {
    AttentionBackward op = good;
    change(op.forward);
    ExpectRejected(op.forward, launch);
    ExpectRejected(op, launch);
    expect_unwritten();
  };
  const std::vector<int32_t> descending = {0, 6, 5}, short_one = {0, 2, 4},
                             late = {1, 2, 5};
  rejected([](Attention& op) { op.heads = 3; });
  rejected([](Attention& op) { op.kv_heads = 0; });
  rejected([](Attention& op) { op.dim = 0; });
  rejected([](Attention& op) { op.dim = 512; });
  rejected([](Attention& op) { op.window = -1; });
  rejected([](Attention& op) { op.soft_cap = NAN; });
  rejected([](Attention& op) { op.past = 1; });
  rejected([](Attention& op) { op.documents = -1; });
  rejected([](Attention& op) { op.offsets = nullptr; });
  rejected([&](Attention& op) { op.offsets = descending.data(); });
  rejected([&](Attention& op) { op.offsets = short_one.data(); });
  rejected([&](Attention& op) { op.offsets = late.data(); });
  rejected([](Attention& op) { op.q.data = nullptr; });
  rejected([](Attention& op) { op.k.rows = 4; });
  rejected([](Attention& op) { op.v.dtype = Dtype::kBfloat16; });
  rejected([](Attention& op) { op.out.columns = 4; });
  rejected([](Attention& op) {
    op.q.dtype = op.k.dtype = op.v.dtype = op.out.dtype = Dtype::kFloat16;
  });
  rejected([](Attention& op) {
    op.mask = AttentionMask::kPrefix;
    op.prefix = nullptr;
  });
  const auto backward_rejected = [&](auto change) {
    AttentionBackward op = good;
    change(op);
    ExpectRejected(op, launch);
    expect_unwritten();
  };
  backward_rejected([](AttentionBackward& op) { op.forward.lse = nullptr; });
  backward_rejected([](AttentionBackward& op) { op.dout = {}; });
  backward_rejected(
      [](AttentionBackward& op) { op.dout = op.dout.Columns(0, 4); });
  backward_rejected(
      [](AttentionBackward& op) { op.dout.dtype = Dtype::kBfloat16; });
  backward_rejected([](AttentionBackward& op) { op.dq.rows = 4; });
  backward_rejected([](AttentionBackward& op) { op.dk = op.dq; });
  backward_rejected([](AttentionBackward& op) { op.dv.data = nullptr; });
  ExpectRejected(good.forward);  // no workspace
  ExpectRejected(good);
  // Decoding has no gradient: good but for that.
  AttentionBackward decoding = good;
  const int32_t one_document[] = {0, 3};
  Attention& f = decoding.forward;
  f.documents = 1;
  f.offsets = one_document;
  f.past = 2;
  f.q = f.q.Rows(0, 3);
  f.out = f.out.Rows(0, 3);
  decoding.dq = decoding.dq.Rows(0, 3);
  decoding.dout = decoding.dout.Rows(0, 3);
  ExpectRejected(decoding, launch);
  expect_unwritten();
  ExpectAccepted(f);
  ExpectAccepted(good.forward);
  ExpectAccepted(good);
}

TEST(AttentionTest, ScalesAndMasksThatAreNone_AreRejected) {
  Random random(1);
  Setting s;
  s.op.heads = s.op.kv_heads = 1;
  s.op.dim = 4;
  s.offsets = {0, 2};
  s.op.documents = 1;
  const Buffers b = ForwardBuffers(random, s, Dtype::kFloat32);
  const auto rejected = [&](auto change) {
    Attention op = Bind(s, b);
    change(op);
    for (const Backend* backend : EveryBackend()) {
      EXPECT_EQ(RunWithRoom(*backend, {}, op), Result::kInvalidArgument);
    }
  };
  rejected([](Attention& op) { op.scale = NAN; });
  rejected([](Attention& op) { op.scale = -INFINITY; });
  rejected([](Attention& op) { op.soft_cap = INFINITY; });
  rejected([](Attention& op) { op.mask = static_cast<AttentionMask>(3); });
}

TEST(AttentionTest, WorkspaceOfBadArguments_IsNone) {
  const int32_t offsets[] = {0, 5}, late[] = {1, 5};
  const Attention good = {.dim = 4, .offsets = offsets, .documents = 1};
  const auto bytes = [](const Attention& op, int threads) {
    const Backend& backend = *CpuBackends().front();
    const int64_t forward = backend.WorkspaceBytes(op, threads);
    EXPECT_EQ(backend.WorkspaceBytes(AttentionBackward{.forward = op}, threads),
              forward);
    return forward;
  };
  EXPECT_GT(bytes(good, 1), 0);
  EXPECT_EQ(bytes(good, 0), 0);
  EXPECT_EQ(bytes(good, INT32_MAX), 0);
  Attention op = good;
  op.offsets = nullptr;
  EXPECT_EQ(bytes(op, 1), 0);
  op.offsets = late;
  EXPECT_EQ(bytes(op, 1), 0);
  op = good;
  op.dim = -4;
  EXPECT_EQ(bytes(op, 1), 0);
  op = good;
  op.past = INT64_MAX;
  EXPECT_EQ(bytes(op, 1), 0);
}

}  // namespace
}  // namespace qlora::kernels
