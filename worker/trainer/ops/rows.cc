#include "worker/trainer/ops/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/simd/kernels.h"
#include "worker/trainer/ops/parallel.h"

namespace qlora::trainer {

using kernels::Simd;
namespace {

// Enough elements that handing a range to a thread pays.
int64_t Grain(int64_t columns) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
}

template <typename F>
void ForRows(const View& x, F f) {
  Parallel(x.rows, Grain(x.columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) f(r);
  });
}

// Sums over rows: each thread owns columns, so the order is that of the rows.
template <typename F>
void ForColumns(int64_t columns, F f) {
  Parallel((columns + 63) / 64, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * 64;
    f(first, std::min(columns, end * 64) - first);
  });
}

}  // namespace

void Embedding(std::span<const int32_t> tokens, const View& table,
               const View& out) {
  WithType(table.dtype, [&](auto t) {
    using T = decltype(t);
    ForRows(out, [&](int64_t r) {
      Simd<T>().to_float(table.row<T>(tokens[r]), out.columns,
                         out.row<float>(r));
    });
  });
}

void EmbeddingBackward(std::span<const int32_t> tokens, const View& dx,
                       const View& grad) {
  ForColumns(dx.columns, [&](int64_t first, int64_t n) {
    for (int64_t r = 0; r < dx.rows; ++r) {
      Simd<float>().add(dx.row<float>(r) + first, n,
                        grad.row<float>(tokens[r]) + first);
    }
  });
}

void RmsNorm(const View& x, const float* w, float eps, const View& out,
             float* rstd) {
  WithType(out.dtype, [&](auto t) {
    using T = decltype(t);
    ForRows(x, [&](int64_t r) {
      Simd<T>().rms_norm(x.row<float>(r), w, x.columns, eps, out.row<T>(r),
                         rstd + r);
    });
  });
}

void RmsNormBackward(const View& x, const float* w, const float* rstd,
                     const View& dy, const View& dx) {
  WithType(dy.dtype, [&](auto t) {
    using T = decltype(t);
    ForRows(x, [&](int64_t r) {
      Simd<T>().rms_norm_backward(x.row<float>(r), w, rstd[r], dy.row<T>(r),
                                  x.columns, dx.row<float>(r));
    });
  });
}

void RmsNormWeightGrad(const View& x, const float* rstd, const View& dy,
                       float* dw) {
  WithType(dy.dtype, [&](auto t) {
    using T = decltype(t);
    ForColumns(x.columns, [&](int64_t first, int64_t n) {
      for (int64_t r = 0; r < x.rows; ++r) {
        Simd<T>().rms_norm_weight(x.row<float>(r) + first, rstd[r],
                                  dy.row<T>(r) + first, n, dw + first);
      }
    });
  });
}

void FillRotaryTable(std::span<const float> inv_freq, int64_t positions,
                     float* cos, float* sin) {
  for (int64_t p = 0; p < positions; ++p) {
    for (const float frequency : inv_freq) {
      const float angle = static_cast<float>(p) * frequency;
      *cos++ = std::cos(angle);
      *sin++ = std::sin(angle);
    }
  }
}

void Rotate(const RotaryTable& table, std::span<const int32_t> positions,
            float sign, const View& x) {
  const int64_t half = table.dim / 2;
  const int heads = static_cast<int>(x.columns / table.dim);
  WithType(x.dtype, [&](auto t) {
    using T = decltype(t);
    ForRows(x, [&](int64_t r) {
      const int64_t place = positions[r] * half;
      Simd<T>().rotate(x.row<T>(r), table.cos + place, table.sin + place, sign,
                       heads, table.dim);
    });
  });
}

void SwiGlu(const View& gate, const View& up, const View& out) {
  WithType(out.dtype, [&](auto t) {
    using T = decltype(t);
    ForRows(out, [&](int64_t r) {
      Simd<T>().swiglu(gate.row<T>(r), up.row<T>(r), out.columns,
                       out.row<T>(r));
    });
  });
}

void SwiGluBackward(const View& gate, const View& up, const View& d) {
  WithType(d.dtype, [&](auto t) {
    using T = decltype(t);
    ForRows(d, [&](int64_t r) {
      Simd<T>().swiglu_backward(gate.row<T>(r), up.row<T>(r), d.row<T>(r),
                                d.columns);
    });
  });
}

void AddTo(const View& y, const View& x) {
  WithType(y.dtype, [&](auto t) {
    using T = decltype(t);
    ForRows(x, [&](int64_t r) {
      Simd<T>().add(y.row<T>(r), x.columns, x.row<float>(r));
    });
  });
}

void Convert(const View& x, const View& out) {
  if (x.dtype == out.dtype) {
    ForRows(x, [&](int64_t r) {
      std::memcpy(out.Rows(r, 1).data, x.Rows(r, 1).data,
                  x.columns * ElementSize(x.dtype));
    });
  } else if (x.dtype == Dtype::kFloat32) {
    ForRows(x, [&](int64_t r) {
      Simd<Bf16>().from_float(x.row<float>(r), x.columns, out.row<Bf16>(r));
    });
  } else {
    ForRows(x, [&](int64_t r) {
      Simd<Bf16>().to_float(x.row<Bf16>(r), x.columns, out.row<float>(r));
    });
  }
}

void FillRows(const float* bias, const View& out) {
  WithType(out.dtype, [&](auto t) {
    using T = decltype(t);
    ForRows(out, [&](int64_t r) {
      Simd<T>().from_float(bias, out.columns, out.row<T>(r));
    });
  });
}

void AddRow(const float* bias, const View& x) {
  ForRows(x, [&](int64_t r) {
    Simd<float>().add(bias, x.columns, x.row<float>(r));
  });
}

void AddColumnSums(const View& y, float* sums) {
  WithType(y.dtype, [&](auto t) {
    using T = decltype(t);
    ForColumns(y.columns, [&](int64_t first, int64_t n) {
      for (int64_t r = 0; r < y.rows; ++r) {
        Simd<T>().add(y.row<T>(r) + first, n, sums + first);
      }
    });
  });
}

}  // namespace qlora::trainer
