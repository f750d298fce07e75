// Rotary embedding, gated activations, dropout, embedding and conversions.
#include <bit>
#include <numeric>

#include "tests/unit/kernels/property.h"

namespace qlora::kernels {
namespace {

enum class Turning { kPlain, kWithNorms, kBackward };

struct Heads {
  int count, half, dim;
};

Heads AnyHeads(Random& random, int64_t rows) {
  // What may be moved in packs of four.
  const int pack = random.aligned() ? 4 : 1;
  const auto any = [&](int64_t low, int64_t high) {
    return static_cast<int>(random.Int(low, high));
  };
  // As wide as heads become.
  if (rows <= 4 && random.Chance(0.02)) {
    constexpr int kDims[] = {128, 256, kMostHeadDim};
    const int dim = kDims[any(0, 2)];
    return {any(1, 3), pack * any(1, dim / 2 / pack), dim};
  }
  // More than a block of threads turns at once.
  const bool many = rows <= 4 && random.Chance(0.02);
  const int count = many ? any(26, 40) : any(1, 4);
  const int half = pack * (many ? any(36, 40) / pack : any(1, 20 / pack));
  return {count, half, 2 * half + pack * any(0, many ? 40 / pack : 3)};
}

// x, cos, sin, query_norm, key_norm, rstd, input, dquery_norm, dkey_norm.
Case RotaryCase(Random& random, Turning what) {
  const int64_t rows = random.AnyShape(4).rows;
  const Heads shape = AnyHeads(random, rows);
  const int heads = shape.count, half = shape.half, dim = shape.dim;
  const int64_t positions = random.Int(1, 9);
  const int64_t columns = heads * dim + random.Int(0, 3);
  const Dtype dtype = random.CommonType();
  Buffers b = {Matrix(random, dtype, rows, columns),
               Matrix(random, Dtype::kFloat32, positions, half, 0),
               Matrix(random, Dtype::kFloat32, positions, half, 0),
               Matrix(random, Dtype::kFloat32, 1, dim),
               Matrix(random, Dtype::kFloat32, 1, dim),
               Matrix(random, Dtype::kFloat32, 1, rows * heads + 1),
               Matrix(random, dtype, rows, columns),
               Matrix(random, Dtype::kFloat32, 1, dim),
               Matrix(random, Dtype::kFloat32, 1, dim)};
  std::vector<int32_t> position(rows + 1);
  for (int32_t& p : position) {
    p = static_cast<int32_t>(random.Int(0, positions - 1));
  }
  constexpr int kInputs[] = {0, 3, 4, 6};
  if (random.Chance(0.2)) b[kInputs[random.Int(0, 3)]].Spoil(random);
  const double input = b[6].Max(), rstd = b[5].Max();
  const double sum = static_cast<double>(rows * heads) * 2 * b[0].Max();
  // The tables are dense.
  std::vector<float> cos(positions * half), sin(cos.size());
  for (size_t i = 0; i < cos.size(); ++i) {
    const float angle = random.Normal() * 3;
    cos[i] = std::cos(angle);
    sin[i] = std::sin(angle);
  }
  const bool query = what != Turning::kPlain && random.Chance(0.8);
  const bool key = what != Turning::kPlain && random.Chance(0.8);
  const bool inverse = what == Turning::kPlain && random.Chance(0.5);
  const bool frozen = random.Chance(0.3);
  const int query_heads = static_cast<int>(random.Int(0, heads));
  const auto run = [=](const Backend& backend, const Launch& launch,
                       const Buffers& m) {
    Rotary op{.x = m[0].view(),
              .heads = heads,
              .dim = dim,
              .rotary_dim = 2 * half,
              .cos = cos.data(),
              .sin = sin.data(),
              .positions = positions,
              .position = position.data(),
              .inverse = inverse,
              .query_norm = query ? m[3].row(0) : nullptr,
              .key_norm = key ? m[4].row(0) : nullptr,
              .query_heads = query_heads,
              .norm_eps = 1e-5f,
              .rstd = m[5].row(0)};
    if (what != Turning::kBackward) return backend.Run(launch, op);
    return backend.Run(
        launch, RotaryNormBackward{
                    .rotary = op,
                    .input = m[6].view(),
                    .dquery_norm = query && !frozen ? m[7].row(0) : nullptr,
                    .dkey_norm = key && !frozen ? m[8].row(0) : nullptr});
  };
  const auto magnitude = [=](size_t i, int64_t r, const Buffers& m,
                             const Buffers& after) {
    if (i == 5) return after[5].Max();
    if (what != Turning::kBackward && i != 0) return 0.0;
    if (what == Turning::kPlain) return 2 * m[0].MaxOfRow(r);
    const double weight = 1 + std::max(m[3].Max(), m[4].Max());
    if (what == Turning::kWithNorms) {
      return 2 * m[0].MaxOfRow(r) * weight * (1 + after[5].Max());
    }
    const double hat = input * rstd;
    if (i == 0) {
      return 2 * m[0].MaxOfRow(r) * weight * (1 + rstd) * (1 + hat * hat);
    }
    return m[i].MaxOfRow(r) + sum * hat;
  };
  return {b, run, magnitude};
}

TEST(RotaryTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(
      kRowError, [](Random& r) { return RotaryCase(r, Turning::kPlain); });
}

TEST(RotaryTest, InverseOfTheReference_FollowsDifferences) {
  Random random(4);
  const Matrix x(random, Dtype::kFloat32, 2, 10),
      dy(random, Dtype::kFloat32, 2, 10), grad = dy;
  const std::vector<float> cos = {0.6f, -0.8f}, sin = {0.8f, 0.6f};
  const std::vector<int32_t> position = {0, 0};
  const auto rotated = [&](const Matrix& m, bool inverse) {
    const Rotary op = {.x = m.view(),
                       .heads = 2,
                       .dim = 5,
                       .rotary_dim = 4,
                       .cos = cos.data(),
                       .sin = sin.data(),
                       .positions = 1,
                       .position = position.data(),
                       .inverse = inverse};
    EXPECT_EQ(ReferenceBackend().Run({}, op), Result::kOk);
  };
  rotated(grad, true);
  CheckGradient(x, grad, [&](const Matrix& m) {
    const Matrix out = m;
    rotated(out, false);
    return Weighted(out, dy);
  });
}

TEST(RotaryTest, WithNorms_AsTheReference) {
  CheckAgainstReference(
      kRowError, [](Random& r) { return RotaryCase(r, Turning::kWithNorms); });
}

TEST(RotaryNormBackwardTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(
      kRowError, [](Random& r) { return RotaryCase(r, Turning::kBackward); });
}

TEST(RotaryNormBackwardTest, Reference_FollowsDifferences) {
  Random random(3);
  const int heads = 3, dim = 7;
  const Matrix x(random, Dtype::kFloat32, 2, heads * dim),
      dy = x, query(random, Dtype::kFloat32, 1, dim),
      key(random, Dtype::kFloat32, 1, dim);
  const std::vector<float> cos = {0.6f, -0.8f, 1}, sin = {0.8f, 0.6f, 0};
  const std::vector<int32_t> position = {0, 0};
  std::vector<float> rstd(2 * heads);
  const auto op_on = [&](const Matrix& m, const Matrix& q, const Matrix& k) {
    return Rotary{.x = m.view(),
                  .heads = heads,
                  .dim = dim,
                  .rotary_dim = 6,
                  .cos = cos.data(),
                  .sin = sin.data(),
                  .positions = 1,
                  .position = position.data(),
                  .query_norm = q.row(0),
                  .key_norm = k.row(0),
                  .query_heads = 2,
                  .norm_eps = 1e-5f,
                  .rstd = rstd.data()};
  };
  const auto loss = [&](const Matrix& m, const Matrix& q, const Matrix& k) {
    const Matrix out = m;
    EXPECT_EQ(ReferenceBackend().Run({}, op_on(out, q, k)), Result::kOk);
    return Weighted(out, dy);
  };
  loss(x, query, key);
  const Matrix grad = dy, dquery(random, Dtype::kFloat32, 1, dim, 0),
               dkey(random, Dtype::kFloat32, 1, dim, 0);
  ASSERT_EQ(ReferenceBackend().Run(
                {}, RotaryNormBackward{.rotary = op_on(grad, query, key),
                                       .input = x.view(),
                                       .dquery_norm = dquery.row(0),
                                       .dkey_norm = dkey.row(0)}),
            Result::kOk);
  CheckGradient(x, grad, [&](const Matrix& m) { return loss(m, query, key); });
  CheckGradient(query, dquery,
                [&](const Matrix& q) { return loss(x, q, key); });
  CheckGradient(key, dkey, [&](const Matrix& k) { return loss(x, query, k); });
}

// gate, up, out or its gradient.
Case GatedCase(Random& random, bool backward) {
  const auto activation = static_cast<Activation>(random.Int(0, 2));
  const Random::Shape shape = random.AnyShape(4);
  const int64_t rows = shape.rows, n = shape.columns;
  const Dtype dtype = random.CommonType();
  Buffers b;
  const float size = random.Chance(0.2) ? 50.0f : 2.0f;
  for (int i = 0; i < 3; ++i) {
    b.emplace_back(random, dtype, rows, n, i == 0 ? size : 1);
  }
  if (rows > 0 && random.Chance(0.1)) Set(b[0].view(), 0, 0, -3e38f);
  // An infinity times a slope that vanishes in float32 only is not compared.
  if (random.Chance(0.2)) b[size > 2 ? 0 : random.Int(0, 2)].Spoil(random);
  const auto run = [=](const Backend& backend, const Launch& launch,
                       const Buffers& m) {
    if (backward) {
      return backend.Run(
          launch, GatedActivationBackward{activation, m[0].view(), m[1].view(),
                                          m[2].view()});
    }
    return backend.Run(launch, GatedActivation{activation, m[0].view(),
                                               m[1].view(), m[2].view()});
  };
  const auto magnitude = [=](size_t, int64_t r, const Buffers& m,
                             const Buffers&) {
    const double gate = std::min(m[0].MaxOfRow(r), 100.0);
    return (1 + gate) * (1 + m[1].MaxOfRow(r)) *
           (backward ? 1 + m[2].MaxOfRow(r) : 1);
  };
  return {b, run, magnitude};
}

TEST(GatedActivationTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kRowError,
                        [](Random& r) { return GatedCase(r, false); });
}

TEST(GatedActivationBackwardTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kRowError,
                        [](Random& r) { return GatedCase(r, true); });
}

TEST(GatedActivationTest, LargestGates_StayThemselvesOrVanish) {
  const std::vector<float> gate = {-3e38f, -200, -90, 0, 90, 200, 3e38f};
  const std::vector<float> up(gate.size(), 1.0f);
  std::vector<float> out(gate.size());
  for (const Backend* backend : CpuBackends()) {
    for (int activation = 0; activation < 3; ++activation) {
      ASSERT_EQ(
          backend->Run({}, GatedActivation{static_cast<Activation>(activation),
                                           FloatView(gate.data(), 1, 7),
                                           FloatView(up.data(), 1, 7),
                                           FloatView(out.data(), 1, 7)}),
          Result::kOk);
      for (int i = 0; i < 4; ++i) EXPECT_NEAR(out[i], 0, 1e-5) << i;
      for (int i = 4; i < 7; ++i) EXPECT_EQ(out[i], gate[i]) << i;
    }
  }
}

TEST(GatedActivationBackwardTest, Reference_FollowsDifferences) {
  for (int activation = 0; activation < 3; ++activation) {
    Random random(5);
    const auto kind = static_cast<Activation>(activation);
    const Matrix gate(random, Dtype::kFloat32, 3, 5, 2), up = gate, dy = gate;
    const auto loss = [&](const Matrix& g, const Matrix& u) {
      const Matrix out = g;
      ReferenceBackend().Run(
          {}, GatedActivation{kind, g.view(), u.view(), out.view()});
      return Weighted(out, dy);
    };
    const Matrix dgate = gate, dup = up, d = dy;
    ReferenceBackend().Run(
        {}, GatedActivationBackward{kind, dgate.view(), dup.view(), d.view()});
    CheckGradient(gate, dgate, [&](const Matrix& m) { return loss(m, up); });
    CheckGradient(up, dup, [&](const Matrix& m) { return loss(gate, m); });
  }
}

Case DropoutCase(Random& random) {
  const Random::Shape shape = random.AnyShape(4);
  const int64_t rows = shape.rows, n = shape.columns;
  const Dtype dtype = random.CommonType();
  Buffers b;
  for (int i = 0; i < 2; ++i) b.emplace_back(random, dtype, rows, n);
  if (random.Chance(0.1)) b[0].Spoil(random);
  std::vector<uint64_t> keys(rows + 1);
  for (uint64_t& key : keys) key = random.Bits();
  Dropout op;
  op.module = static_cast<uint32_t>(random.Bits());
  op.probability =
      random.Chance(0.1) ? 0.0f : static_cast<float>(random.Int(0, 999)) / 1000;
  op.add = random.Chance(0.5);
  const bool in_place = random.Chance(0.2);
  return {b,
          [=](const Backend& backend, const Launch& launch, const Buffers& m) {
            Dropout call = op;
            call.x = m[0].view();
            call.out = m[in_place ? 0 : 1].view();
            call.row_keys = keys.data();
            return backend.Run(launch, call);
          },
          nullptr};
}

TEST(DropoutTest, EveryBackend_SameBits) {
  CheckAgainstReference(0, DropoutCase);
}

// The published test vectors of Philox4x32-10 have all four counter words set;
// of a counter of zeros the reachable one is the first.
TEST(DropoutTest, ZeroKeyAndCounter_GiveThePublishedWords) {
  const uint32_t words[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  const uint64_t key = 0;
  const std::vector<float> ones(4, 1.0f);
  std::vector<float> out(4);
  for (const uint32_t word : words) {
    // Kept just where the word is not below the threshold.
    const float p = std::ldexp(static_cast<float>(word >> 8), -24);
    Dropout op{.x = FloatView(ones.data(), 1, 4),
               .row_keys = &key,
               .probability = p,
               .out = FloatView(out.data(), 1, 4)};
    ASSERT_EQ(ReferenceBackend().Run({}, op), Result::kOk);
    for (int c = 0; c < 4; ++c) {
      EXPECT_EQ(out[c] != 0, words[c] >= (word & ~0xffu)) << c;
    }
    op.probability = std::ldexp(static_cast<float>((word >> 8) + 1), -24);
    ASSERT_EQ(ReferenceBackend().Run({}, op), Result::kOk);
    for (int c = 0; c < 4; ++c) {
      EXPECT_EQ(out[c] != 0, words[c] >= (word & ~0xffu) + 0x100) << c;
    }
  }
}

TEST(DropoutTest, SharesOfADocument_DropTheSame) {
  const int64_t rows = 7, n = 131;
  const std::vector<float> ones(rows * n, 1.0f);
  std::vector<uint64_t> keys(rows);
  std::iota(keys.begin(), keys.end(), 100);
  std::vector<float> whole(rows * n), part(rows * n);
  const Dropout op{.x = FloatView(ones.data(), rows, n),
                   .row_keys = keys.data(),
                   .module = 3,
                   .probability = 0.25f,
                   .out = FloatView(whole.data(), rows, n)};
  const Backend& backend = *CpuBackends().front();
  backend.Run({}, op);
  for (int64_t r = rows - 1; r >= 0; --r) {
    Dropout one = op;
    one.x = op.x.Rows(r, 1);
    one.row_keys = &keys[r];
    one.out = FloatView(part.data(), rows, n).Rows(r, 1);
    backend.Run({}, one);
  }
  EXPECT_EQ(whole, part);
  const double dropped =
      static_cast<double>(std::count(whole.begin(), whole.end(), 0.0f));
  EXPECT_NEAR(dropped / static_cast<double>(whole.size()), 0.25, 0.05);
}

// tables, rows.
Case EmbeddingCase(Random& random, bool backward) {
  const Random::Shape shape = random.AnyShape(9);
  const int64_t rows = shape.rows, n = shape.columns;
  const int64_t vocabulary = random.Int(1, 5 + rows / 2);
  const Dtype dtype = backward ? Dtype::kFloat32 : random.CommonType();
  Buffers b = {Matrix(random, dtype, vocabulary, n),
               Matrix(random, Dtype::kFloat32, rows, n)};
  if (random.Chance(0.1)) b[backward ? 1 : 0].Spoil(random);
  std::vector<int32_t> tokens(rows + 1);
  for (int32_t& t : tokens) {
    t = static_cast<int32_t>(random.Int(0, vocabulary - 1));
  }
  const float scale = random.Chance(0.5) ? 1.0f : random.Normal();
  const auto run = [=](const Backend& backend, const Launch& launch,
                       const Buffers& m) {
    if (backward) {
      return backend.Run(launch, EmbeddingBackward{tokens.data(), scale,
                                                   m[1].view(), m[0].view()});
    }
    return backend.Run(
        launch, Embedding{tokens.data(), m[0].view(), scale, m[1].view()});
  };
  if (!backward) return {b, run, nullptr};
  const double sum =
      b[0].Max() + static_cast<double>(rows) * b[1].Max() * std::fabs(scale);
  return {b, run,
          [=](size_t, int64_t, const Buffers&, const Buffers&) { return sum; }};
}

TEST(EmbeddingTest, EveryBackend_SameBits) {
  CheckAgainstReference(0, [](Random& r) { return EmbeddingCase(r, false); });
}

TEST(EmbeddingBackwardTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kRowError,
                        [](Random& r) { return EmbeddingCase(r, true); });
}

TEST(EmbeddingBackwardTest, Reference_FollowsDifferences) {
  Random random(2);
  const std::vector<int32_t> tokens = {2, 0, 2};
  const Matrix table(random, Dtype::kFloat32, 3, 4),
      dy(random, Dtype::kFloat32, 3, 4), grad(random, Dtype::kFloat32, 3, 4, 0);
  ReferenceBackend().Run(
      {}, EmbeddingBackward{tokens.data(), 1.5f, dy.view(), grad.view()});
  CheckGradient(table, grad, [&](const Matrix& m) {
    const Matrix out = dy;
    ReferenceBackend().Run(
        {}, Embedding{tokens.data(), m.view(), 1.5f, out.view()});
    return Weighted(out, dy);
  });
}

// What is one row or all, what is as large as it.
Case ConvertCase(Random& random, int which) {
  const Random::Shape shape = random.AnyShape(5);
  const int64_t rows = shape.rows, n = shape.columns;
  const Dtype type = which == 0 ? random.CommonType() : Dtype::kFloat32;
  Buffers b = {
      Matrix(random, which == 0 ? random.AnyType() : random.CommonType(),
             which < 2 && random.Chance(0.3) ? 1 : rows, n),
      Matrix(random, type, which == 2 ? 1 : rows, n)};
  if (random.Chance(0.2)) b[0].Spoil(random);
  return {b,
          [=](const Backend& backend, const Launch& launch, const Buffers& m) {
            const View x = m[0].view(), out = m[1].view();
            if (which == 0) return backend.Run(launch, Convert{x, out});
            if (which == 1) return backend.Run(launch, Add{x, out});
            return backend.Run(launch, ColumnSums{x, m[1].row(0)});
          },
          nullptr};
}

TEST(ConvertTest, EveryBackend_SameBits) {
  CheckAgainstReference(0, [](Random& r) { return ConvertCase(r, 0); });
}

TEST(AddTest, EveryBackend_SameBits) {
  CheckAgainstReference(0, [](Random& r) { return ConvertCase(r, 1); });
}

TEST(ColumnSumsTest, EveryBackend_SameBits) {
  CheckAgainstReference(0, [](Random& r) { return ConvertCase(r, 2); });
}

TEST(ConvertTest, TiesGoToEvenAndNothingIsFlushed) {
  const std::vector<float> x = {1 + 0x1p-8f, 1 + 3 * 0x1p-8f, 3.4e38f,
                                0x1p-130f,   -0.0f,           NAN};
  const std::vector<uint16_t> bits = {0x3f80, 0x3f82, 0x7f80, 0x0008, 0x8000};
  for (const Backend* backend : CpuBackends()) {
    std::vector<uint16_t> out(6);
    const View narrow = MakeView(out.data(), Dtype::kBfloat16, 1, 6);
    backend->Run({}, Convert{FloatView(x.data(), 1, 6), narrow});
    EXPECT_TRUE(std::equal(bits.begin(), bits.end(), out.begin()));
    EXPECT_TRUE(std::isnan(Get(narrow, 0, 5)));
  }
}

TEST(RowOpsTest, BadArguments_AreRejected) {
  Random random(1);
  const Matrix m(random, Dtype::kFloat32, 2, 8),
      other(random, Dtype::kFloat32, 2, 8);
  const View x = m.view(), narrow = x.Columns(0, 7);
  View half = x;
  half.dtype = Dtype::kFloat16;
  const std::vector<int32_t> tokens = {0, 1};
  const Rotary good{.x = x,
                    .heads = 2,
                    .dim = 4,
                    .rotary_dim = 4,
                    .cos = other.row(0),
                    .sin = other.row(0),
                    .positions = 2,
                    .position = tokens.data()};
  const auto rotary = [&](auto change) {
    Rotary op = good;
    change(op);
    ExpectRejected(op);
  };
  rotary([](Rotary& op) { op.heads = 3; });
  rotary([](Rotary& op) { op.heads = 0; });
  rotary([](Rotary& op) { op.dim = 0; });
  rotary([](Rotary& op) { op.rotary_dim = 3; });
  rotary([](Rotary& op) { op.rotary_dim = 6; });
  rotary([](Rotary& op) { op.cos = nullptr; });
  rotary([](Rotary& op) { op.position = nullptr; });
  rotary([](Rotary& op) { op.query_heads = 3; });
  rotary([&](Rotary& op) { op.query_norm = x.row<float>(0); });
  ExpectRejected(RotaryNormBackward{.rotary = good, .input = narrow});
  ExpectAccepted(good);
  ExpectAccepted(RotaryNormBackward{.rotary = good, .input = other.view()});
  for (const int32_t bad : {-1, 2}) {
    const std::vector<int32_t> beyond = {0, bad};
    Rotary op = good;
    op.position = beyond.data();
    ExpectRejectedOnHost(op);
    ExpectRejectedOnHost(RotaryNormBackward{.rotary = op, .input = x});
    ExpectRejectedOnHost(Embedding{beyond.data(), x, 1, x});
    ExpectRejectedOnHost(EmbeddingBackward{beyond.data(), 1, x, x});
  }
  ExpectRejected(GatedActivation{Activation::kSilu, x, narrow, x});
  ExpectRejected(GatedActivation{Activation::kSilu, x, x, half});
  ExpectRejected(GatedActivationBackward{Activation::kSilu, x, half, x});
  const uint64_t keys[2] = {};
  ExpectRejected(Dropout{.x = x, .row_keys = keys, .probability = 1, .out = x});
  ExpectRejected(
      Dropout{.x = x, .row_keys = keys, .probability = NAN, .out = x});
  ExpectRejected(Dropout{.x = x, .row_keys = nullptr, .out = x});
  ExpectRejected(Embedding{tokens.data(), narrow, 1, x});
  ExpectRejected(Embedding{nullptr, x, 1, x});
  ExpectRejected(Embedding{tokens.data(), x, 1, half});
  ExpectRejected(EmbeddingBackward{tokens.data(), 1, x, half});
  ExpectRejected(Convert{narrow, x});
  ExpectRejected(Add{x, half});
  ExpectRejectedOnHost(Add{other.view(), x}, {.parallel_for = nullptr});
  ExpectRejected(ColumnSums{x, nullptr});
}

TEST(RowOpsTest, UnknownEnumerators_AreRejected) {
  Random random(1);
  const Matrix m(random, Dtype::kFloat32, 2, 8);
  const View x = m.view();
  for (const int unknown : {-1, 3}) {
    const auto activation = static_cast<Activation>(unknown);
    ExpectRejected(GatedActivation{activation, x, x, x});
    ExpectRejected(GatedActivationBackward{activation, x, x, x});
    View odd = x;
    odd.dtype = static_cast<Dtype>(unknown);
    ExpectRejected(Convert{odd, x});
    ExpectRejected(Convert{x, odd});
  }
}

TEST(RotaryNormBackwardTest, Inverse_IsRejected) {
  Random random(1);
  const Matrix m(random, Dtype::kFloat32, 1, 4),
      input(random, Dtype::kFloat32, 1, 4), table = input;
  const int32_t position = 0;
  RotaryNormBackward op = {.rotary = {.x = m.view(),
                                      .heads = 1,
                                      .dim = 4,
                                      .rotary_dim = 4,
                                      .cos = table.row(0),
                                      .sin = table.row(0),
                                      .positions = 1,
                                      .position = &position},
                           .input = input.view()};
  EXPECT_EQ(ReferenceBackend().Run({}, op), Result::kOk);
  op.rotary.inverse = true;
  ExpectRejected(op);
}

TEST(ConvertTest, BitsOfNans_AreTheReferences) {
  alignas(16) uint32_t wide[5] = {0x7fc12345, 0xffc10000, 0x7fd50000};
  alignas(16) uint16_t bf16[5] = {0xffc1, 0x7fd5, 0x7fc0};
  alignas(16) uint16_t fp16[5] = {0xfe01, 0x7e55, 0x7e00};
  wide[4] = 0xffc54321;
  bf16[4] = 0xffd5;
  fp16[4] = 0x7e01;
  const View sources[] = {MakeView(wide, Dtype::kFloat32, 1, 5),
                          MakeView(bf16, Dtype::kBfloat16, 1, 5),
                          MakeView(fp16, Dtype::kFloat16, 1, 5)};
  for (const View& x : sources) {
    for (int to = 0; to < (AreDevices() ? 3 : 2); ++to) {
      alignas(16) uint32_t want[5] = {}, got[5] = {};
      const auto run = [&](const Backend& backend, uint32_t* out) {
        const View view = MakeView(out, static_cast<Dtype>(to), 1, 5);
        EXPECT_EQ(backend.Run({}, Convert{x, view}), Result::kOk);
      };
      run(ReferenceBackend(), want);
      for (const Backend* backend : TestedBackends()) {
        run(*backend, got);
        EXPECT_EQ(std::memcmp(got, want, sizeof got), 0)
            << backend->name() << static_cast<int>(x.dtype) << to;
      }
    }
  }
}

TEST(RowOpsTest, BitsOfNewNans_AreTheReferences) {
  const float nan = std::bit_cast<float>(0x7fc12345u);
  const float x[] = {INFINITY, nan, 1, -2}, y[] = {-INFINITY, 1, nan, 3};
  const View view = FloatView(y, 1, 4);
  const uint64_t key = 0;
  const int32_t token = 0;
  const auto check = [&](const char* what, const auto& op_on) {
    float want[4], got[4];
    std::copy(x, x + 4, want);
    EXPECT_EQ(ReferenceBackend().Run({}, op_on(want)), Result::kOk);
    for (const Backend* backend : TestedBackends()) {
      std::copy(x, x + 4, got);
      EXPECT_EQ(backend->Run({}, op_on(got)), Result::kOk);
      EXPECT_EQ(std::memcmp(got, want, sizeof got), 0)
          << what << " " << backend->name();
    }
  };
  check("Add", [&](float* out) { return Add{view, FloatView(out, 1, 4)}; });
  check("ColumnSums", [&](float* out) { return ColumnSums{view, out}; });
  check("Dropout", [&](float* out) {
    return Dropout{
        .x = view, .row_keys = &key, .add = true, .out = FloatView(out, 1, 4)};
  });
  check("Embedding", [&](float* out) {
    return Embedding{&token, view, 0, FloatView(out, 1, 4)};
  });
}

TEST(RotaryNormBackwardTest, NoRows_LeavesGradientsAlone) {
  const float table[] = {1, 1};
  for (const Backend* backend : EveryBackend()) {
    float dnorm[] = {-0.0f, -0.0f};
    const Rotary rotary = {.x = FloatView(nullptr, 0, 2),
                           .heads = 1,
                           .dim = 2,
                           .rotary_dim = 2,
                           .cos = table,
                           .sin = table,
                           .positions = 1,
                           .query_norm = table,
                           .query_heads = 1};
    ASSERT_EQ(
        backend->Run({}, RotaryNormBackward{.rotary = rotary,
                                            .input = FloatView(nullptr, 0, 2),
                                            .dquery_norm = dnorm}),
        Result::kOk);
    EXPECT_TRUE(std::signbit(dnorm[0]) && std::signbit(dnorm[1]));
  }
}

}  // namespace
}  // namespace qlora::kernels
