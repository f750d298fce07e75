#include <algorithm>
#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {
namespace {

double SumOf(int64_t n, auto f) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += f(i);
  return sum;
}

void AddRow(const View& x, const View& add, int64_t r) {
  if (add.data == nullptr) return;
  for (int64_t c = 0; c < x.columns; ++c) {
    x.row<float>(r)[c] += Get(add, r, c);
  }
}

// The tail of both norms' gradients: dx += rstd * (g - mean(g) - xhat *
// mean(g * xhat)), without the mean of g for RMSNorm.
struct NormGrad {
  const View& x;
  const View& dy;
  const View& dx;
  double mean, rstd;
  bool centered;

  void Add(int64_t r, auto weight) const {
    const auto n = static_cast<double>(x.columns);
    const auto hat = [&](int64_t c) {
      return (x.row<float>(r)[c] - mean) * rstd;
    };
    const auto g = [&](int64_t c) { return weight(c) * Get(dy, r, c); };
    const double g_mean = centered ? SumOf(x.columns, g) / n : 0;
    const double dot =
        SumOf(x.columns, [&](int64_t c) { return g(c) * hat(c); }) / n;
    for (int64_t c = 0; c < x.columns; ++c) {
      Set(dx, r, c, Get(dx, r, c) + rstd * (g(c) - g_mean - hat(c) * dot));
    }
  }
};

// A head's place in a row, and its norm.
struct Head {
  Head(const Rotary& op, int64_t r, int h)
      : first(int64_t{h} * op.dim),
        cos(op.cos + int64_t{op.position[r]} * (op.rotary_dim / 2)),
        sin(op.sin + int64_t{op.position[r]} * (op.rotary_dim / 2)),
        norm(h < op.query_heads ? op.query_norm : op.key_norm),
        rstd(norm == nullptr ? nullptr : op.rstd + r * op.heads + h) {}

  int64_t first;
  const float* cos;
  const float* sin;
  const float* norm;
  float* rstd;
};

// Element i of a head whose elements are y(0), y(1), ..., turned.
double Turned(const Rotary& op, const Head& head, int i, bool back, auto y) {
  const int half = op.rotary_dim / 2;
  if (i >= op.rotary_dim) return y(i);
  const int pair = i % half;
  const double sin = back ? -head.sin[pair] : head.sin[pair];
  return i < half ? y(i) * head.cos[pair] - y(i + half) * sin
                  : y(i) * head.cos[pair] + y(i - half) * sin;
}

// Replaces a head by f(0), f(1), ..., which may read what it replaces.
void ReplaceHead(const View& x, int64_t r, int64_t first, int dim, auto f) {
  double values[kMostHeadDim];
  for (int i = 0; i < dim; ++i) values[i] = f(i);
  for (int i = 0; i < dim; ++i) Set(x, r, first + i, values[i]);
}

struct ActivationValue {
  double value, slope;
};

ActivationValue Activate(Activation activation, double x) {
  constexpr double kRootHalf = 0.70710678118654752;
  constexpr double kDensity = 0.39894228040143268;
  if (activation == Activation::kGelu) {
    const double cdf = 0.5 * (1 + std::erf(x * kRootHalf));
    return {x * cdf, cdf + x * kDensity * std::exp(-0.5 * x * x)};
  }
  // x * sigmoid(u(x)); 0.5 * (1 + tanh(u / 2)) is the sigmoid of u.
  double u = x, du = 1;
  if (activation == Activation::kGeluTanh) {
    u = 4 * kDensity * (x + 0.044715 * x * x * x);
    du = 4 * kDensity * (1 + 3 * 0.044715 * x * x);
  }
  const double s = 1 / (1 + std::exp(-u));
  return {x * s, s + x * s * (1 - s) * du};
}

void PhiloxRound(uint32_t* c, const uint32_t* k) {
  const uint64_t a = uint64_t{0xD2511F53} * c[0];
  const uint64_t b = uint64_t{0xCD9E8D57} * c[2];
  const uint32_t next[4] = {
      static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
      static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
  std::copy(next, next + 4, c);
}

uint32_t PhiloxWord(uint64_t key, uint32_t module, int64_t column) {
  uint32_t c[4] = {static_cast<uint32_t>(column / 4), module, 0, 0};
  uint32_t k[2] = {static_cast<uint32_t>(key),
                   static_cast<uint32_t>(key >> 32)};
  for (int round = 0; round < 10; ++round) {
    PhiloxRound(c, k);
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return c[column % 4];
}

}  // namespace

Result Reference::Do(const Launch& /*launch*/, const RmsNorm& op) const {
  const View& x = op.x;
  for (int64_t r = 0; r < x.rows; ++r) {
    AddRow(x, op.add, r);
    const double squares = SumOf(x.columns, [&](int64_t c) {
      return double{x.row<float>(r)[c]} * x.row<float>(r)[c];
    });
    const double rstd =
        1 / std::sqrt(squares / static_cast<double>(x.columns) + op.eps);
    op.rstd[r] = static_cast<float>(rstd);
    for (int64_t c = 0; c < x.columns; ++c) {
      Set(op.out, r, c,
          x.row<float>(r)[c] * rstd *
              (double{op.weight[c]} + op.weight_offset));
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const RmsNormBackward& op) const {
  for (int64_t r = 0; r < op.x.rows; ++r) {
    NormGrad{op.x, op.dy, op.dx, 0, op.rstd[r], false}.Add(
        r, [&](int64_t c) { return double{op.weight[c]} + op.weight_offset; });
    if (op.dweight == nullptr) continue;
    for (int64_t c = 0; c < op.x.columns; ++c) {
      op.dweight[c] += op.x.row<float>(r)[c] * op.rstd[r] * Get(op.dy, r, c);
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/, const LayerNorm& op) const {
  const View& x = op.x;
  const auto n = static_cast<double>(x.columns);
  for (int64_t r = 0; r < x.rows; ++r) {
    AddRow(x, op.add, r);
    const float* row = x.row<float>(r);
    const double mean = SumOf(x.columns, [&](int64_t c) { return row[c]; }) / n;
    const double variance =
        SumOf(x.columns,
              [&](int64_t c) { return (row[c] - mean) * (row[c] - mean); }) /
        n;
    const double rstd = 1 / std::sqrt(variance + op.eps);
    op.mean[r] = static_cast<float>(mean);
    op.rstd[r] = static_cast<float>(rstd);
    for (int64_t c = 0; c < x.columns; ++c) {
      const double bias = op.bias == nullptr ? 0 : op.bias[c];
      Set(op.out, r, c, (row[c] - mean) * rstd * op.weight[c] + bias);
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const LayerNormBackward& op) const {
  for (int64_t r = 0; r < op.x.rows; ++r) {
    NormGrad{op.x, op.dy, op.dx, op.mean[r], op.rstd[r], true}.Add(
        r, [&](int64_t c) { return double{op.weight[c]}; });
    for (int64_t c = 0; c < op.x.columns; ++c) {
      const float dy = Get(op.dy, r, c);
      if (op.dweight != nullptr) {
        op.dweight[c] += (op.x.row<float>(r)[c] - op.mean[r]) * op.rstd[r] * dy;
      }
      if (op.dbias != nullptr) op.dbias[c] += dy;
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/, const Rotary& op) const {
  for (int64_t r = 0; r < op.x.rows; ++r) {
    for (int h = 0; h < op.heads; ++h) {
      const Head head(op, r, h);
      double rstd = 1;
      if (head.norm != nullptr) {
        const double squares = SumOf(op.dim, [&](int64_t i) {
          return std::pow(double{Get(op.x, r, head.first + i)}, 2);
        });
        rstd = 1 / std::sqrt(squares / op.dim + op.norm_eps);
        *head.rstd = static_cast<float>(rstd);
      }
      const auto normed = [&](int i) {
        const double weight = head.norm == nullptr ? 1 : head.norm[i];
        return Get(op.x, r, head.first + i) * rstd * weight;
      };
      ReplaceHead(op.x, r, head.first, op.dim, [&](int i) {
        return Turned(op, head, i, op.inverse, normed);
      });
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const RotaryNormBackward& op) const {
  const Rotary& turn = op.rotary;
  for (int64_t r = 0; r < turn.x.rows; ++r) {
    for (int h = 0; h < turn.heads; ++h) {
      const Head head(turn, r, h);
      const auto dy = [&](int i) {
        return Turned(turn, head, i, true, [&](int j) {
          return double{Get(turn.x, r, head.first + j)};
        });
      };
      if (head.norm == nullptr) {
        ReplaceHead(turn.x, r, head.first, turn.dim, dy);
        continue;
      }
      const double rstd = *head.rstd;
      const auto hat = [&](int64_t i) {
        return Get(op.input, r, head.first + i) * rstd;
      };
      float* dnorm = h < turn.query_heads ? op.dquery_norm : op.dkey_norm;
      for (int i = 0; dnorm != nullptr && i < turn.dim; ++i) {
        dnorm[i] += static_cast<float>(dy(i) * hat(i));
      }
      const double dot =
          SumOf(turn.dim,
                [&](int64_t i) {
                  return dy(static_cast<int>(i)) * head.norm[i] * hat(i);
                }) /
          turn.dim;
      ReplaceHead(turn.x, r, head.first, turn.dim, [&](int i) {
        return rstd * (dy(i) * head.norm[i] - hat(i) * dot);
      });
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const GatedActivation& op) const {
  for (int64_t r = 0; r < op.out.rows; ++r) {
    for (int64_t c = 0; c < op.out.columns; ++c) {
      const double value = Activate(op.activation, Get(op.gate, r, c)).value;
      Set(op.out, r, c, value * Get(op.up, r, c));
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const GatedActivationBackward& op) const {
  for (int64_t r = 0; r < op.d.rows; ++r) {
    for (int64_t c = 0; c < op.d.columns; ++c) {
      const auto [value, slope] = Activate(op.activation, Get(op.gate, r, c));
      const double up = Get(op.up, r, c), d = Get(op.d, r, c);
      Set(op.gate, r, c, d * up * slope);
      Set(op.up, r, c, d * value);
      Set(op.d, r, c, value * up);
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/, const Dropout& op) const {
  const double threshold = std::ldexp(double{op.probability}, 32);
  const float scale = 1.0f / (1.0f - op.probability);
  for (int64_t r = 0; r < op.x.rows; ++r) {
    for (int64_t c = 0; c < op.x.columns; ++c) {
      const bool kept = PhiloxWord(op.row_keys[r], op.module, c) >= threshold;
      const float value = kept ? Get(op.x, r, c) * scale : 0.0f;
      Set(op.out, r, c, op.add ? Get(op.out, r, c) + value : value);
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/, const Embedding& op) const {
  for (int64_t r = 0; r < op.out.rows; ++r) {
    for (int64_t c = 0; c < op.out.columns; ++c) {
      Set(op.out, r, c, Get(op.table, op.tokens[r], c) * op.scale);
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/,
                     const EmbeddingBackward& op) const {
  for (int64_t r = 0; r < op.dx.rows; ++r) {
    for (int64_t c = 0; c < op.dx.columns; ++c) {
      op.dtable.row<float>(op.tokens[r])[c] += Get(op.dx, r, c) * op.scale;
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/, const Convert& op) const {
  for (int64_t r = 0; r < op.out.rows; ++r) {
    const int64_t from = op.x.rows == 1 ? 0 : r;
    for (int64_t c = 0; c < op.out.columns; ++c) {
      Set(op.out, r, c, Get(op.x, from, c));
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/, const Add& op) const {
  for (int64_t r = 0; r < op.x.rows; ++r) {
    AddRow(op.x.Rows(r, 1), op.y.Rows(op.y.rows == 1 ? 0 : r, 1), 0);
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/, const ColumnSums& op) const {
  for (int64_t r = 0; r < op.x.rows; ++r) {
    for (int64_t c = 0; c < op.x.columns; ++c) op.sums[c] += Get(op.x, r, c);
  }
  return Result::kOk;
}

}  // namespace qlora::kernels
