#include "tests/unit/kernels/property.h"

namespace qlora::kernels {
namespace {

// x, weight, out, rstd, mean, bias, add.
Case NormCase(Random& random, bool layer) {
  const int64_t rows = random.Int(0, 6), n = random.Length();
  const bool with_add = random.Chance(0.5), with_bias = random.Chance(0.5);
  Buffers b = {Matrix(random, Dtype::kFloat32, rows, n, 2),
               Matrix(random, Dtype::kFloat32, 1, n),
               Matrix(random, random.FloatOrBf16(), rows, n),
               Matrix(random, Dtype::kFloat32, 1, rows + 1),
               Matrix(random, Dtype::kFloat32, 1, rows + 1),
               Matrix(random, Dtype::kFloat32, 1, n),
               Matrix(random, random.FloatOrBf16(), rows, n)};
  if (random.Chance(0.1)) b[0].Spoil(random);
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
    if (i != 2) return after[i].Max() + (i == 4 ? after[0].Max() : 0.0);
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
  const int64_t rows = random.Int(0, 6), n = random.Length();
  const bool frozen = random.Chance(0.3);
  Buffers b = {Matrix(random, Dtype::kFloat32, rows, n),
               Matrix(random, Dtype::kFloat32, 1, n),
               Matrix(random, Dtype::kFloat32, 1, rows + 1),
               Matrix(random, random.FloatOrBf16(), rows, n),
               Matrix(random, Dtype::kFloat32, rows, n),
               Matrix(random, Dtype::kFloat32, 1, n),
               Matrix(random, Dtype::kFloat32, 1, rows + 1),
               Matrix(random, Dtype::kFloat32, 1, n)};
  if (random.Chance(0.1)) b[3].Spoil(random);
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
    const double hats = (m[0].Max() + (layer ? m[6].Max() : 0)) * m[2].Max();
    const double g = (m[1].Max() + 1) * m[3].Max();
    if (i == 4) {
      return m[4].MaxOfRow(r) + m[2].Max() * g * (2 + hats * hats);
    }
    return m[i].Max() + static_cast<double>(rows) * m[3].Max() * (1 + hats);
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

TEST(NormBackwardTest, Reference_FollowsDifferences) {
  for (const bool layer : {false, true}) {
    Random random(7);
    const Matrix x(random, Dtype::kFloat32, 2, 9),
        w(random, Dtype::kFloat32, 1, 9), dy(random, Dtype::kFloat32, 2, 9);
    float rstd[2], mean[2] = {};
    const auto out_of = [&](const Matrix& input, const Matrix& weight) {
      Matrix out = dy;
      if (layer) {
        ReferenceBackend().Run({}, LayerNorm{.x = input.view(),
                                             .weight = weight.row(0),
                                             .eps = 1e-5f,
                                             .out = out.view(),
                                             .mean = mean,
                                             .rstd = rstd});
      } else {
        ReferenceBackend().Run({}, RmsNorm{.x = input.view(),
                                           .weight = weight.row(0),
                                           .weight_offset = 1,
                                           .eps = 1e-5f,
                                           .out = out.view(),
                                           .rstd = rstd});
      }
      return Weighted(out, dy);
    };
    out_of(x, w);
    Matrix dx(random, Dtype::kFloat32, 2, 9, 0),
        dw(random, Dtype::kFloat32, 1, 9, 0),
        db(random, Dtype::kFloat32, 1, 9, 0);
    if (layer) {
      ReferenceBackend().Run({}, LayerNormBackward{.x = x.view(),
                                                   .weight = w.row(0),
                                                   .mean = mean,
                                                   .rstd = rstd,
                                                   .dy = dy.view(),
                                                   .dx = dx.view(),
                                                   .dweight = dw.row(0),
                                                   .dbias = db.row(0)});
    } else {
      ReferenceBackend().Run({}, RmsNormBackward{.x = x.view(),
                                                 .weight = w.row(0),
                                                 .weight_offset = 1,
                                                 .rstd = rstd,
                                                 .dy = dy.view(),
                                                 .dx = dx.view(),
                                                 .dweight = dw.row(0)});
    }
    CheckGradient(x, dx, [&](const Matrix& m) { return out_of(m, w); });
    CheckGradient(w, dw, [&](const Matrix& m) { return out_of(x, m); });
  }
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
  for (const Backend* backend : CpuBackends()) {
    RmsNorm half = good;
    half.out.dtype = Dtype::kFloat16;
    EXPECT_EQ(backend->Run({}, half), Result::kUnsupported);
    EXPECT_EQ(rstd[0], 5);
  }
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
