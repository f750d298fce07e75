#include "kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {
namespace {

double At(const View& v, int64_t row, int64_t column) {
  return LoadElement(v.data, v.dtype, row * v.stride + column);
}

void Set(const View& v, int64_t row, int64_t column, double value) {
  StoreElement(static_cast<float>(value), v.data, v.dtype,
               row * v.stride + column);
}

bool Sees(const Attention& op, int64_t document, int64_t query, int64_t key) {
  if (op.mask == AttentionMask::kPrefix && key < op.prefix[document]) {
    return true;
  }
  if (op.window > 0 && std::abs(query - key) >= op.window) return false;
  return op.mask == AttentionMask::kBidirectional || key <= query;
}

// One query's row of probabilities, float64.
class Row {
 public:
  // Workspace of two doubles a key.
  Row(const Attention& op, int64_t document, int head, double* workspace)
      : op_(op),
        document_(document),
        begin_(op.offsets[document]),
        keys_(op.offsets[document + 1] - begin_ + op.past),
        head_(int64_t{head} * op.dim),
        kv_head_(int64_t{head} / (op.heads / op.kv_heads) * op.dim),
        scale_(op.scale != 0 ? op.scale : 1 / std::sqrt(double(op.dim))),
        p_(workspace),
        slope_(workspace + keys_) {}

  int64_t keys() const { return keys_; }
  double scale() const { return scale_; }
  double p(int64_t key) const { return p_[key]; }
  // Of the cap.
  double slope(int64_t key) const { return slope_[key]; }
  double k(int64_t key, int i) const {
    return At(op_.k, begin_ + key, kv_head_ + i);
  }
  double v(int64_t key, int i) const {
    return At(op_.v, begin_ + key, kv_head_ + i);
  }
  double q(int64_t query, int i) const { return Of(op_.q, query, i); }
  // Of a matrix with the rows and heads of q.
  double Of(const View& view, int64_t query, int i) const {
    return At(view, begin_ + query, head_ + i);
  }

  // Returns the log-sum-exp.
  double Fill(int64_t query) {
    double max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < keys_; ++j) {
      p_[j] = Score(query, j);
      max = std::max(max, p_[j]);
    }
    for (int64_t j = 0; j < keys_; ++j) sum += p_[j] = std::exp(p_[j] - max);
    for (int64_t j = 0; j < keys_; ++j) p_[j] /= sum;
    return max + std::log(sum);
  }

 private:
  double Score(int64_t query, int64_t key) {
    slope_[key] = 1;
    if (!Sees(op_, document_, op_.past + query, key)) return -INFINITY;
    double score = 0;
    for (int i = 0; i < op_.dim; ++i) score += q(query, i) * k(key, i);
    score *= scale_;
    if (op_.soft_cap == 0) return score;
    const double t = std::tanh(score / op_.soft_cap);
    slope_[key] = 1 - t * t;
    return op_.soft_cap * t;
  }

  const Attention& op_;
  const int64_t document_, begin_, keys_, head_, kv_head_;
  const double scale_;
  double* const p_;
  double* const slope_;
};

int64_t MostKeys(const Attention& op) {
  int64_t most = 0;
  for (int64_t d = 0; d < op.documents; ++d) {
    most = std::max<int64_t>(most, op.offsets[d + 1] - op.offsets[d]);
  }
  return most + op.past;
}

// dq of one query; adds to the sums dk and dv, [keys, dim].
void QueryBackward(const AttentionBackward& op, Row& row, int64_t begin,
                   int head, int64_t query, double* dk, double* dv) {
  const int dim = op.forward.dim;
  row.Fill(query);
  const auto grad = [&](int64_t key) {
    double sum = 0;
    for (int i = 0; i < dim; ++i) {
      sum += row.Of(op.dout, query, i) * row.v(key, i);
    }
    return sum;
  };
  double delta = 0;
  for (int64_t j = 0; j < row.keys(); ++j) {
    if (row.p(j) != 0) delta += row.p(j) * grad(j);
  }
  double dq[256] = {};
  for (int64_t j = 0; j < row.keys(); ++j) {
    if (row.p(j) == 0) continue;
    const double ds = row.p(j) * (grad(j) - delta) * row.slope(j) * row.scale();
    for (int i = 0; i < dim; ++i) {
      dq[i] += ds * row.k(j, i);
      dk[j * dim + i] += ds * row.q(query, i);
      dv[j * dim + i] += row.p(j) * row.Of(op.dout, query, i);
    }
  }
  for (int i = 0; i < dim; ++i) {
    Set(op.dq, begin + query, int64_t{head} * dim + i, dq[i]);
  }
}

}  // namespace

Result Reference::Do(const Launch& launch, const Attention& op) const {
  for (int64_t d = 0; d < op.documents; ++d) {
    const int64_t begin = op.offsets[d], queries = op.offsets[d + 1] - begin;
    for (int h = 0; h < op.heads; ++h) {
      Row row(op, d, h, static_cast<double*>(launch.workspace));
      for (int64_t query = 0; query < queries; ++query) {
        const double lse = row.Fill(query);
        if (op.lse != nullptr) {
          op.lse[h * op.q.rows + begin + query] = static_cast<float>(lse);
        }
        for (int i = 0; i < op.dim; ++i) {
          double out = 0;
          for (int64_t j = 0; j < row.keys(); ++j) {
            if (row.p(j) != 0) out += row.p(j) * row.v(j, i);
          }
          Set(op.out, begin + query, int64_t{h} * op.dim + i, out);
        }
      }
    }
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& launch, const AttentionBackward& op) const {
  const Attention& f = op.forward;
  const int group = f.heads / f.kv_heads;
  for (int64_t d = 0; d < f.documents; ++d) {
    const int64_t begin = f.offsets[d], rows = f.offsets[d + 1] - begin;
    const int64_t size = rows * f.dim;
    auto* dk = static_cast<double*>(launch.workspace) + 2 * rows;
    double* dv = dk + size;
    for (int kv = 0; kv < f.kv_heads; ++kv) {
      std::fill(dk, dv + size, 0.0);
      for (int h = kv * group; h < (kv + 1) * group; ++h) {
        Row row(f, d, h, static_cast<double*>(launch.workspace));
        for (int64_t query = 0; query < rows; ++query) {
          QueryBackward(op, row, begin, h, query, dk, dv);
        }
      }
      for (int64_t i = 0; i < size; ++i) {
        const int64_t column = int64_t{kv} * f.dim + i % f.dim;
        Set(op.dk, begin + i / f.dim, column, dk[i]);
        Set(op.dv, begin + i / f.dim, column, dv[i]);
      }
    }
  }
  return Result::kOk;
}

int64_t Reference::Room(const Attention& op, int /*threads*/) const {
  return 2 * MostKeys(op) * static_cast<int64_t>(sizeof(double));
}

int64_t Reference::Room(const AttentionBackward& op, int /*threads*/) const {
  return 2 * MostKeys(op.forward) * (1 + op.forward.dim) *
         static_cast<int64_t>(sizeof(double));
}

}  // namespace qlora::kernels
