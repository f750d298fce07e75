#include "tests/unit/kernels/property.h"

namespace qlora::kernels {
namespace {

// x, weight, out, rstd, mean, bias, add.
Case NormCase(Random& random, bool layer) {
  const Random::Shape shape = random.AnyShape(6);
  const int64_t rows = shape.rows, n = shape.columns;
  const bool with_add = random.Chance(0.5), with_bias = random.Chance(0.5);
  Buffers b = {Matrix(random, Dtype::kFloat32, rows, n, 2),
               Matrix(random, Dtype::kFloat32, 1, n),
               Matrix(random, random.CommonType(), rows, n),
               Matrix(random, Dtype::kFloat32, 1, rows + 1),
               Matrix(random, Dtype::kFloat32, 1, rows + 1),
               Matrix(random, Dtype::kFloat32, 1, n),
               Matrix(random, random.CommonType(), rows, n)};
  constexpr int kInputs[] = {0, 1, 5, 6};
  if (random.Chance(0.2)) b[kInputs[random.Int(0, 3)]].Spoil(random);
  const float offset = random.Chance(0.5) ? 1.0f : 0.0f;
  const auto run = [=](const Backend& backend, const Launch& launch,
                       const Buffers& m) {
    const View add = with_add ? m[6].view() : View{};
    if (layer) {
      return backend.Run(launch,
                         LayerNorm{.x = m[0].view(),
                                   .add = add,
                                   .weight = m[1].row(0),
                                   .bias = with_bias ? m[5].row(0) : nullptr,
                                   .eps = 1e-5f,
                                   .out = m[2].view(),
                                   .mean = m[4].row(0),
                                   .rstd = m[3].row(0)});
    }
    return backend.Run(launch, RmsNorm{.x = m[0].view(),
                                       .add = add,
                                       .weight = m[1].row(0),
                                       .weight_offset = offset,
                                       .eps = 1e-5f,
                                       .out = m[2].view(),
                                       .rstd = m[3].row(0)});
  };
  const auto magnitude = [=](size_t i, int64_t r, const Buffers&,
                             const Buffers& after) {
    if (i == 0) return 0.0;
    if (i != 2) return after[i].MaxOfRow(r) + (i == 4 ? after[0].Max() : 0.0);
    // (x - mean) * rstd * weight + bias; a variance that eps outweighs keeps
    // the rounding of x.
    const double scale = layer ? after[3].row(0)[r] : 0;
    return after[2].MaxOfRow(r) +
           (scale * after[0].MaxOfRow(r) + 1) * (after[1].Max() + 1) +
           (with_bias ? after[5].Max() : 0.0);
  };
  return {b, run, magnitude};
}

TEST(RmsNormTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kRowError,
                        [](Random& r) { return NormCase(r, false); });
}

TEST(LayerNormTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kRowError, [](Random& r) { return NormCase(r, true); });
}

// x, weight, rstd, dy, dx, dweight, mean, dbias.
Case BackwardCase(Random& random, bool layer) {
  const Random::Shape shape = random.AnyShape(6);
  const int64_t rows = shape.rows, n = shape.columns;
  const bool frozen = random.Chance(0.3);
  Buffers b = {Matrix(random, Dtype::kFloat32, rows, n),
               Matrix(random, Dtype::kFloat32, 1, n),
               Matrix(random, Dtype::kFloat32, 1, rows + 1),
               Matrix(random, random.CommonType(), rows, n),
               Matrix(random, Dtype::kFloat32, rows, n),
               Matrix(random, Dtype::kFloat32, 1, n),
               Matrix(random, Dtype::kFloat32, 1, rows + 1),
               Matrix(random, Dtype::kFloat32, 1, n)};
  constexpr int kInputs[] = {0, 1, 3, 4, 5};
  if (random.Chance(0.2)) b[kInputs[random.Int(0, 4)]].Spoil(random);
  const double hats = (b[0].Max() + (layer ? b[6].Max() : 0)) * b[2].Max();
  const double rstd = b[2].Max(), dy = b[3].Max(), g = (b[1].Max() + 1) * dy;
  const auto run = [=](const Backend& backend, const Launch& launch,
                       const Buffers& m) {
    float* dweight = frozen ? nullptr : m[5].row(0);
    if (layer) {
      return backend.Run(launch, LayerNormBackward{.x = m[0].view(),
                                                   .weight = m[1].row(0),
                                                   .mean = m[6].row(0),
                                                   .rstd = m[2].row(0),
                                                   .dy = m[3].view(),
                                                   .dx = m[4].view(),
                                                   .dweight = dweight,
                                                   .dbias = m[7].row(0)});
    }
    return backend.Run(launch, RmsNormBackward{.x = m[0].view(),
                                               .weight = m[1].row(0),
                                               .weight_offset = 1,
                                               .rstd = m[2].row(0),
                                               .dy = m[3].view(),
                                               .dx = m[4].view(),
                                               .dweight = dweight});
  };
  const auto magnitude = [=](size_t i, int64_t r, const Buffers& m,
                             const Buffers&) {
    const double sum = i == 4 ? rstd * g * (2 + hats * hats)
                              : static_cast<double>(rows) * dy * (1 + hats);
    return m[i].MaxOfRow(r) + sum;
  };
  return {b, run, magnitude};
}

TEST(RmsNormBackwardTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kRowError,
                        [](Random& r) { return BackwardCase(r, false); });
}

TEST(LayerNormBackwardTest, EveryBackend_AsTheReference) {
  CheckAgainstReference(kRowError,
                        [](Random& r) { return BackwardCase(r, true); });
}

TEST(RmsNormBackwardTest, Reference_FollowsDifferences) {
  Random random(7);
  const Matrix x(random, Dtype::kFloat32, 2, 9),
      w(random, Dtype::kFloat32, 1, 9), dy(random, Dtype::kFloat32, 2, 9);
  float rstd[2];
  const auto loss = [&](const Matrix& input, const Matrix& weight) {
    const Matrix out = dy;
    ReferenceBackend().Run({}, RmsNorm{.x = input.view(),
                                       .weight = weight.row(0),
                                       .weight_offset = 1,
                                       .eps = 1e-5f,
                                       .out = out.view(),
                                       .rstd = rstd});
    return Weighted(out, dy);
  };
  loss(x, w);
  const Matrix dx(random, Dtype::kFloat32, 2, 9, 0),
      dw(random, Dtype::kFloat32, 1, 9, 0);
  ASSERT_EQ(ReferenceBackend().Run({}, RmsNormBackward{.x = x.view(),
                                                       .weight = w.row(0),
                                                       .weight_offset = 1,
                                                       .rstd = rstd,
                                                       .dy = dy.view(),
                                                       .dx = dx.view(),
                                                       .dweight = dw.row(0)}),
            Result::kOk);
  CheckGradient(x, dx, [&](const Matrix& m) { return loss(m, w); });
  CheckGradient(w, dw, [&](const Matrix& m) { return loss(x, m); });
}

TEST(LayerNormBackwardTest, Reference_FollowsDifferences) {
  Random random(7);
  const Matrix x(random, Dtype::kFloat32, 2, 9),
      w(random, Dtype::kFloat32, 1, 9), b(random, Dtype::kFloat32, 1, 9),
      dy(random, Dtype::kFloat32, 2, 9);
  float rstd[2], mean[2];
  const auto loss = [&](const Matrix& input, const Matrix& weight,
                        const Matrix& bias) {
    const Matrix out = dy;
    ReferenceBackend().Run({}, LayerNorm{.x = input.view(),
                                         .weight = weight.row(0),
                                         .bias = bias.row(0),
                                         .eps = 1e-5f,
                                         .out = out.view(),
                                         .mean = mean,
                                         .rstd = rstd});
    return Weighted(out, dy);
  };
  loss(x, w, b);
  const Matrix dx(random, Dtype::kFloat32, 2, 9, 0),
      dw(random, Dtype::kFloat32, 1, 9, 0),
      db(random, Dtype::kFloat32, 1, 9, 0);
  ASSERT_EQ(ReferenceBackend().Run({}, LayerNormBackward{.x = x.view(),
                                                         .weight = w.row(0),
                                                         .mean = mean,
                                                         .rstd = rstd,
                                                         .dy = dy.view(),
                                                         .dx = dx.view(),
                                                         .dweight = dw.row(0),
                                                         .dbias = db.row(0)}),
            Result::kOk);
  CheckGradient(x, dx, [&](const Matrix& m) { return loss(m, w, b); });
  CheckGradient(w, dw, [&](const Matrix& m) { return loss(x, m, b); });
  CheckGradient(b, db, [&](const Matrix& m) { return loss(x, w, m); });
}

// Without that member.
template <typename Op, typename T>
void ExpectRejectedWithout(Op op, T Op::*member) {
  op.*member = {};
  ExpectRejected(op);
}

TEST(NormTest, BadArguments_AreRejectedAndNothingIsWritten) {
  Random random(1);
  const Matrix x(random, Dtype::kFloat32, 2, 8), out = x;
  float rstd[2] = {5, 5};
  const RmsNorm good = {
      .x = x.view(), .weight = x.row(0), .out = out.view(), .rstd = rstd};
  const auto rejected = [&](auto change) {
    RmsNorm op = good;
    change(op);
    ExpectRejected(op);
    EXPECT_EQ(rstd[0], 5);
  };
  rejected([](RmsNorm& op) { op.weight = nullptr; });
  rejected([](RmsNorm& op) { op.rstd = nullptr; });
  rejected([](RmsNorm& op) { op.eps = -1; });
  rejected([](RmsNorm& op) { op.x.columns = 0; });
  rejected([](RmsNorm& op) { op.x.stride = 7; });
  rejected([](RmsNorm& op) { op.x.rows = -1; });
  rejected([](RmsNorm& op) { op.x.data = nullptr; });
  rejected([](RmsNorm& op) { op.x.dtype = Dtype::kBfloat16; });
  rejected([](RmsNorm& op) { op.out.rows = 1; });
  rejected([](RmsNorm& op) { op.add = op.x.Columns(0, 7); });
  const RmsNormBackward backward = {.x = x.view(),
                                    .weight = x.row(0),
                                    .rstd = rstd,
                                    .dy = x.view(),
                                    .dx = out.view()};
  const LayerNorm layer = {.x = x.view(),
                           .weight = x.row(0),
                           .out = out.view(),
                           .mean = rstd,
                           .rstd = rstd};
  const LayerNormBackward layer_backward = {.x = x.view(),
                                            .weight = x.row(0),
                                            .mean = rstd,
                                            .rstd = rstd,
                                            .dy = x.view(),
                                            .dx = out.view()};
  ExpectRejectedWithout(layer, &LayerNorm::mean);
  ExpectRejectedWithout(layer_backward, &LayerNormBackward::mean);
  ExpectRejectedWithout(layer_backward, &LayerNormBackward::rstd);
  ExpectRejectedWithout(backward, &RmsNormBackward::rstd);
  ExpectRejectedWithout(backward, &RmsNormBackward::dy);
  ExpectRejectedWithout(layer_backward, &LayerNormBackward::dx);
  ExpectAccepted(good);
  ExpectAccepted(backward);
  ExpectAccepted(layer);
  ExpectAccepted(layer_backward);
}

// Above the size that is written past the caches, aligned and not.
TEST(RmsNormTest, LargeOutput_AsTheSmall) {
  const int64_t n = 1024, rows = 4200;
  for (const int64_t shift : {0, 1}) {
    std::vector<float> x(n * rows + 32), out(x.size()), rstd(rows);
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = static_cast<float>(i % 97) - 48;
    for (const Backend* backend : CpuBackends()) {
      const View in = FloatView(x.data(), rows, n);
      float* aligned =
          out.data() + (-reinterpret_cast<intptr_t>(out.data()) & 63) / 4;
      const RmsNorm op = {.x = in,
                          .weight = x.data(),
                          .out = FloatView(aligned + shift, rows, n),
                          .rstd = rstd.data()};
      ASSERT_EQ(backend->Run({}, op), Result::kOk);
      std::vector<float> row(n);
      for (int64_t r = 0; r < rows; r += 100) {
        RmsNorm one = op;
        one.x = in.Rows(r, 1);
        one.out = FloatView(row.data(), 1, n);
        backend->Run({}, one);
        ASSERT_EQ(std::memcmp(row.data(), op.out.row<float>(r), n * 4), 0);
      }
    }
  }
}

}  // namespace
}  // namespace qlora::kernels
