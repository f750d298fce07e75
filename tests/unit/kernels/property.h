// Random arguments for ops, and the comparison of a backend with the reference
// on them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/reference/element.h"
#include "tests/unit/kernels/rejection.h"
#include "tests/unit/kernels/tested_backends.h"

namespace qlora::kernels {

class Random {
 public:
  struct Shape {
    int64_t rows, columns;
  };

  explicit Random(uint64_t seed) : seed_(seed), engine_(seed) {}

  // Whether rows begin at multiples of 16 bytes.
  bool aligned() const { return seed_ % 4 == 0; }
  // In [low, high].
  int64_t Int(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  bool Chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  float Normal() { return std::normal_distribution<float>()(engine_); }
  uint64_t Bits() { return engine_(); }
  // Up to `most_rows` rows, columns around the widths of vectors or now and
  // then long; of 1,000 seeds two with more columns than a grid of the emulated
  // device reaches at once, fourteen with more rows.
  Shape AnyShape(int64_t most_rows) {
    if (seed_ % 499 == 5) return {Int(1, 2), Int(33000, 36000)};
    if (seed_ % 71 == 2) return {Int(20, 300), Int(1, 70)};
    return {Int(0, most_rows), Chance(0.02) ? Int(1000, 2100) : Int(1, 70)};
  }
  Dtype AnyType() { return static_cast<Dtype>(Int(0, 2)); }
  // That every op of the tested backends has: CPUs lack float16.
  Dtype CommonType() {
    return static_cast<Dtype>(Int(0, AreDevices() ? 2 : 1));
  }

 private:
  uint64_t seed_;
  std::mt19937_64 engine_;
};

// A matrix of its own with canaries before, between and behind its rows.
class Matrix {
 public:
  Matrix(Random& random, Dtype dtype, int64_t rows, int64_t columns,
         float size = 1)
      : shape_(MakeView(nullptr, dtype, rows, columns)),
        offset_(64 + random.Int(0, 3) * ElementSize(dtype)) {
    shape_.stride += random.Int(0, 5);
    if (random.aligned()) {
      offset_ = 64;
      shape_.stride = (shape_.stride + 7) / 8 * 8;
    }
    bytes_.assign(offset_ + rows * shape_.stride * ElementSize(dtype) + 64,
                  kCanary);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        Set(view(), r, c, random.Normal() * size);
      }
    }
  }

  View view() const {
    View v = shape_;
    v.data = const_cast<uint8_t*>(bytes_.data()) + offset_;
    return v;
  }
  float* row(int64_t r) const { return view().row<float>(r); }
  int64_t rows() const { return shape_.rows; }
  int64_t columns() const { return shape_.columns; }
  float at(int64_t r, int64_t c) const { return Get(view(), r, c); }

  double MaxOfRow(int64_t r) const {
    double max = 0;
    for (int64_t c = 0; c < columns(); ++c) {
      max = std::max(max, std::fabs(double{at(r, c)}));
    }
    return max;
  }
  double Max() const {
    double max = 0;
    for (int64_t r = 0; r < rows(); ++r) max = std::max(max, MaxOfRow(r));
    return max;
  }

  // Puts NaN or infinities somewhere.
  void Spoil(Random& random) {
    constexpr float kSpecial[] = {NAN, INFINITY, -INFINITY};
    if (rows() == 0) return;
    Set(view(), random.Int(0, rows() - 1), random.Int(0, columns() - 1),
        kSpecial[random.Int(0, 2)]);
  }

  bool CanariesLive() const {
    std::vector<bool> ours(bytes_.size());
    const int64_t size = ElementSize(shape_.dtype);
    for (int64_t r = 0; r < rows(); ++r) {
      const int64_t begin = offset_ + r * shape_.stride * size;
      std::fill_n(ours.begin() + begin, columns() * size, true);
    }
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if (!ours[i] && bytes_[i] != kCanary) return false;
    }
    return true;
  }

 private:
  static constexpr uint8_t kCanary = 0xA5;
  View shape_;
  int64_t offset_;
  std::vector<uint8_t> bytes_;
};

using Buffers = std::vector<Matrix>;

// One call: what it reads and writes, how to make it, and the magnitude that
// the error of row r of buffer i is a share of, given the buffers before and
// after; none where the bits must be the same.
struct Case {
  Buffers buffers;
  std::function<Result(const Backend&, const Launch&, const Buffers&)> run;
  std::function<double(size_t i, int64_t r, const Buffers& before,
                       const Buffers& after)>
      magnitude;
};

// Cuts the range into grains and takes the last first.
inline void BackwardsFor(int64_t n, int64_t grain, RangeBody body) {
  for (int64_t begin = (n - 1) / grain * grain; n > 0 && begin >= 0;
       begin -= grain) {
    body(begin, std::min(n, begin + grain));
  }
}

inline double LastPlace(Dtype dtype, double value) {
  switch (dtype) {
    case Dtype::kFloat32:
      return std::fabs(value) * 0x1p-23;
    case Dtype::kBfloat16:
      return std::fabs(value) * 0x1p-7;
    case Dtype::kFloat16:
      break;
  }
  // Subnormal numbers lie this far apart.
  return std::max(std::fabs(value) * 0x1p-10, 0x1p-24);
}

inline void ExpectClose(const Matrix& got, const Matrix& want,
                        const std::function<double(int64_t)>& tolerance) {
  for (int64_t r = 0; r < want.rows(); ++r) {
    const double allowed = tolerance ? tolerance(r) : 0;
    for (int64_t c = 0; c < want.columns(); ++c) {
      const double g = got.at(r, c), w = want.at(r, c);
      if (std::isnan(w)) {
        ASSERT_TRUE(std::isnan(g)) << r << "," << c << " is " << g;
      } else if (std::isinf(w) || !tolerance) {
        ASSERT_EQ(g, w) << r << "," << c;
      } else if (std::isfinite(allowed)) {
        ASSERT_LE(std::fabs(g - w), allowed + LastPlace(want.view().dtype, w))
            << r << "," << c << ": " << g << " for " << w;
      }
    }
  }
}

// Backends against the reference over `cases` random calls.
inline void CheckAgainstReference(
    double error, const std::function<Case(Random&)>& make, int cases = 2000,
    std::span<const Backend* const> backends = TestedBackends()) {
  Launch backwards;
  backwards.parallel_for = BackwardsFor;
  for (int i = 0; i < CaseCount(cases); ++i) {
    Random random(i);
    const Case c = make(random);
    auto want = c.buffers;
    ASSERT_EQ(c.run(ReferenceBackend(), Launch{}, want), Result::kOk) << i;
    for (const Backend* backend : backends) {
      SCOPED_TRACE(std::string(backend->name()) + " case " + std::to_string(i));
      auto got = c.buffers;
      ASSERT_EQ(c.run(*backend, i % 2 == 0 ? Launch{} : backwards, got),
                Result::kOk);
      for (size_t b = 0; b < got.size(); ++b) {
        SCOPED_TRACE("buffer " + std::to_string(b));
        ASSERT_TRUE(got[b].CanariesLive());
        std::function<double(int64_t)> tolerance;
        if (c.magnitude) {
          tolerance = [&](int64_t r) {
            return error * 0x1p-24 * c.magnitude(b, r, c.buffers, want);
          };
        }
        ExpectClose(got[b], want[b], tolerance);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// The gradient of sum(weights * outputs(x)) by differences, for every element
// of x; `outputs` returns the weighted sum for the x it is given.
inline void CheckGradient(const Matrix& x, const Matrix& gradient,
                          const std::function<double(const Matrix&)>& loss,
                          double tolerance = 2e-3) {
  const double size = std::max(1.0, gradient.Max());
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t c = 0; c < x.columns(); ++c) {
      Matrix up = x, down = x;
      Set(up.view(), r, c, x.at(r, c) + 0x1p-8f);
      Set(down.view(), r, c, x.at(r, c) - 0x1p-8f);
      const double step = double{up.at(r, c)} - down.at(r, c);
      ASSERT_NEAR((loss(up) - loss(down)) / step, gradient.at(r, c),
                  tolerance * size)
          << r << "," << c;
    }
  }
}

// Of the longest vector: each `length` elements of a row are one.
inline double LongestVector(const Matrix& m, int64_t length) {
  double most = 0;
  for (int64_t r = 0; r < m.rows(); ++r) {
    for (int64_t c = 0; c < m.columns(); c += length) {
      double sum = 0;
      for (int64_t i = 0; i < length; ++i) sum += std::pow(m.at(r, c + i), 2);
      most = std::max(most, std::sqrt(sum));
    }
  }
  return most;
}

inline double Weighted(const Matrix& values, const Matrix& weights) {
  double sum = 0;
  for (int64_t r = 0; r < values.rows(); ++r) {
    for (int64_t c = 0; c < values.columns(); ++c) {
      sum += double{values.at(r, c)} * weights.at(r, c);
    }
  }
  return sum;
}

}  // namespace qlora::kernels
