#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/row_split.h"

namespace qlora::kernels {
namespace {

// fp16 is missing on this side; checked before anything is written.
bool HasType(const View& v) {
  return v.data == nullptr || v.dtype != Dtype::kFloat16;
}

// x's row += add's, if there is one.
void AddRow(const KernelSet& set, const View& x, const View& add, int64_t r) {
  if (add.data == nullptr) return;
  WithKernels(set, add.dtype, [&](const auto& k, auto t) {
    k.add(add.row<decltype(t)>(r), x.columns, 1.0f, x.row<float>(r));
  });
}

// RmsNorm without a mean, LayerNorm with one.
template <typename Op>
Result Normalize(const KernelSet& set, const Launch& launch, const Op& op,
                 float weight_offset, const float* bias, float* mean) {
  if (!HasType(op.add)) return Result::kUnsupported;
  return WithKernels(set, op.out.dtype, [&](const auto& k, auto t) {
    const auto norm = mean == nullptr ? k.rms_norm : k.layer_norm;
    const bool stream = IsLarge(op.out);
    ForRows(launch, op.x, [&](int64_t r) {
      AddRow(set, op.x, op.add, r);
      norm({.x = op.x.template row<float>(r),
            .n = op.x.columns,
            .weight = op.weight,
            .weight_offset = weight_offset,
            .bias = bias,
            .eps = op.eps,
            .stream = stream,
            .mean = mean + (mean == nullptr ? 0 : r),
            .rstd = op.rstd + r},
           op.out.template row<decltype(t)>(r));
    });
  });
}

// The same of their gradients.
template <typename Op>
Result NormBackward(const KernelSet& set, const Launch& launch, const Op& op,
                    float weight_offset, const float* mean, float* dbias) {
  const auto mean_of = [&](int64_t r) { return mean == nullptr ? 0 : mean[r]; };
  return WithKernels(set, op.dy.dtype, [&](const auto& k, auto t) {
    using T = decltype(t);
    const auto backward =
        mean == nullptr ? k.rms_norm_backward : k.layer_norm_backward;
    ForRows(launch, op.x, [&](int64_t r) {
      backward({.x = op.x.template row<float>(r),
                .n = op.x.columns,
                .weight = op.weight,
                .weight_offset = weight_offset,
                .mean = mean_of(r),
                .rstd = op.rstd[r],
                .dx = op.dx.template row<float>(r)},
               op.dy.template row<T>(r));
    });
    if (op.dweight == nullptr && dbias == nullptr) return;
    ForColumns(launch, op.x.columns, [&](int64_t first, int64_t n) {
      for (int64_t r = 0; r < op.x.rows; ++r) {
        const T* dy = op.dy.template row<T>(r) + first;
        if (op.dweight != nullptr) {
          k.norm_weight(op.x.template row<float>(r) + first, n, mean_of(r),
                        op.rstd[r], dy, op.dweight + first);
        }
        if (dbias != nullptr) k.add(dy, n, 1.0f, dbias + first);
      }
    });
  });
}

// out's only row = x.
void ConvertHalves(const KernelSet& set, const QuantizeKernels& quantize,
                   const Fp16* x, const View& out) {
  constexpr int64_t kStep = 1024;
  float wide[kStep];
  WithKernels(set, out.dtype, [&](const auto& k, auto t) {
    for (int64_t i = 0; i < out.columns; i += kStep) {
      const int64_t n = std::min(kStep, out.columns - i);
      quantize.to_float(x + i, Dtype::kFloat16, n, wide);
      k.from_float(wide, n, 1.0f, out.row<decltype(t)>(0) + i);
    }
  });
}

Turn TurnOf(const Rotary& op, int64_t r) {
  const int64_t place = int64_t{op.position[r]} * (op.rotary_dim / 2);
  return {.cos = op.cos + place,
          .sin = op.sin + place,
          .sign = op.inverse ? -1.0f : 1.0f,
          .heads = op.heads,
          .dim = op.dim,
          .rotary_dim = op.rotary_dim};
}

// Calls f(first head, heads, norm) for the query heads and for the others.
template <typename F>
void ForHeadGroups(const Rotary& op, F f) {
  f(0, op.query_heads, op.query_norm);
  f(op.query_heads, op.heads - op.query_heads, op.key_norm);
}

template <typename T>
void RotateRow(const Kernels<T>& k, const Rotary& op, int64_t r) {
  Turn turn = TurnOf(op, r);
  T* x = op.x.row<T>(r);
  if (op.query_norm == nullptr && op.key_norm == nullptr) {
    k.rotate(turn, x);
    return;
  }
  ForHeadGroups(op, [&](int first, int heads, const float* norm) {
    turn.heads = heads;
    if (norm == nullptr) k.rotate(turn, x + int64_t{first} * op.dim);
    for (int h = first; norm != nullptr && h < first + heads; ++h) {
      k.norm_rotate(turn, norm, op.norm_eps, x + int64_t{h} * op.dim,
                    op.rstd + r * op.heads + h);
    }
  });
}

template <typename T>
void RotateRowBackward(const Kernels<T>& k, const RotaryNormBackward& op,
                       int64_t r) {
  const Rotary& rotary = op.rotary;
  Turn turn = TurnOf(rotary, r);
  T* grad = rotary.x.row<T>(r);
  const T* input = op.input.row<T>(r);
  ForHeadGroups(rotary, [&](int first, int heads, const float* norm) {
    turn.heads = heads;
    turn.sign = -1;
    if (norm == nullptr) k.rotate(turn, grad + int64_t{first} * rotary.dim);
    for (int h = first; norm != nullptr && h < first + heads; ++h) {
      const int64_t at = int64_t{h} * rotary.dim;
      k.norm_rotate_backward(turn, input + at, norm,
                             rotary.rstd[r * rotary.heads + h], grad + at);
    }
  });
}

// The gradients of one norm's weight, in the order of tokens and heads.
template <typename T>
void HeadNormWeight(const Kernels<T>& k, const RotaryNormBackward& op,
                    int first, int heads, float* dweight) {
  const Rotary& rotary = op.rotary;
  for (int64_t r = 0; dweight != nullptr && r < rotary.x.rows; ++r) {
    const Turn turn = TurnOf(rotary, r);
    for (int h = first; h < first + heads; ++h) {
      const int64_t at = int64_t{h} * rotary.dim;
      k.norm_rotate_weight(turn, rotary.x.row<T>(r) + at,
                           op.input.row<T>(r) + at,
                           rotary.rstd[r * rotary.heads + h], dweight);
    }
  }
}

}  // namespace

Result CpuBackend::Do(const Launch& launch, const RmsNorm& op) const {
  return Normalize(rows_, launch, op, op.weight_offset, nullptr, nullptr);
}

Result CpuBackend::Do(const Launch& launch, const LayerNorm& op) const {
  return Normalize(rows_, launch, op, 0, op.bias, op.mean);
}

Result CpuBackend::Do(const Launch& launch, const RmsNormBackward& op) const {
  return NormBackward(rows_, launch, op, op.weight_offset, nullptr, nullptr);
}

Result CpuBackend::Do(const Launch& launch, const LayerNormBackward& op) const {
  return NormBackward(rows_, launch, op, 0, op.mean, op.dbias);
}

Result CpuBackend::Do(const Launch& launch, const Rotary& op) const {
  return WithKernels(rows_, op.x.dtype, [&](const auto& k, auto) {
    ForRows(launch, op.x, [&](int64_t r) { RotateRow(k, op, r); });
  });
}

Result CpuBackend::Do(const Launch& launch,
                      const RotaryNormBackward& op) const {
  return WithKernels(rows_, op.rotary.x.dtype, [&](const auto& k, auto) {
    const Rotary& rotary = op.rotary;
    // Before the gradient is replaced; the two weights side by side.
    launch.parallel_for(2, 1, [&](int64_t begin, int64_t end) {
      if (begin == 0) {
        HeadNormWeight(k, op, 0, rotary.query_heads, op.dquery_norm);
      }
      if (end == 2) {
        HeadNormWeight(k, op, rotary.query_heads,
                       rotary.heads - rotary.query_heads, op.dkey_norm);
      }
    });
    ForRows(launch, rotary.x, [&](int64_t r) { RotateRowBackward(k, op, r); });
  });
}

Result CpuBackend::Do(const Launch& launch, const GatedActivation& op) const {
  return WithKernels(rows_, op.out.dtype, [&](const auto& k, auto t) {
    using T = decltype(t);
    const auto gated = k.gated[static_cast<int>(op.activation)];
    const bool stream = IsLarge(op.out);
    ForRows(launch, op.out, [&](int64_t r) {
      gated(op.gate.row<T>(r), op.up.row<T>(r), op.out.columns, stream,
            op.out.row<T>(r));
    });
  });
}

Result CpuBackend::Do(const Launch& launch,
                      const GatedActivationBackward& op) const {
  return WithKernels(rows_, op.d.dtype, [&](const auto& k, auto t) {
    using T = decltype(t);
    const auto backward = k.gated_backward[static_cast<int>(op.activation)];
    ForRows(launch, op.d, [&](int64_t r) {
      backward(op.gate.row<T>(r), op.up.row<T>(r), op.d.row<T>(r),
               op.d.columns);
    });
  });
}

Result CpuBackend::Do(const Launch& launch, const Dropout& op) const {
  // Words are integers: w < p * 2^32 just where w < its ceiling.
  const double threshold = std::ceil(std::ldexp(double{op.probability}, 32));
  const float scale = 1.0f / (1.0f - op.probability);
  return WithKernels(rows_, op.x.dtype, [&](const auto&, auto t) {
    using T = decltype(t);
    ForRows(launch, op.x, [&](int64_t r) {
      const DropoutRow row = {.key = op.row_keys[r],
                              .module = op.module,
                              .threshold = static_cast<uint32_t>(threshold),
                              .scale = scale};
      const int64_t n = op.x.columns;
      if constexpr (sizeof(T) == 4) {
        rows_.exact->dropout_float32(op.x.row<T>(r), n, row, op.add,
                                     op.out.row<T>(r));
      } else {
        rows_.exact->dropout_bfloat16(op.x.row<T>(r), n, row, op.add,
                                      op.out.row<T>(r));
      }
    });
  });
}

Result CpuBackend::Do(const Launch& launch, const Embedding& op) const {
  return WithKernels(rows_, op.table.dtype, [&](const auto& k, auto t) {
    ForRows(launch, op.out, [&](int64_t r) {
      k.to_float(op.table.row<decltype(t)>(op.tokens[r]), op.out.columns,
                 op.scale, op.out.row<float>(r));
    });
  });
}

Result CpuBackend::Do(const Launch& launch, const EmbeddingBackward& op) const {
  ForColumns(launch, op.dx.columns, [&](int64_t first, int64_t n) {
    for (int64_t r = 0; r < op.dx.rows; ++r) {
      rows_.float32.add(op.dx.row<float>(r) + first, n, op.scale,
                        op.dtable.row<float>(op.tokens[r]) + first);
    }
  });
  return Result::kOk;
}

Result CpuBackend::Do(const Launch& launch, const Convert& op) const {
  if (!HasType(op.out)) return Result::kUnsupported;
  ForRows(launch, op.out, [&](int64_t r) {
    const int64_t from = op.x.rows == 1 ? 0 : r;
    const int64_t n = op.out.columns;
    if (op.x.dtype == Dtype::kFloat16) {
      ConvertHalves(rows_, quantize_, op.x.row<Fp16>(from), op.out.Rows(r, 1));
    } else if (op.x.dtype == op.out.dtype) {
      std::memcpy(op.out.Rows(r, 1).data, op.x.Rows(from, 1).data,
                  n * ElementSize(op.x.dtype));
    } else if (op.x.dtype == Dtype::kFloat32) {
      rows_.bfloat16.from_float(op.x.row<float>(from), n, 1.0f,
                                op.out.row<Bf16>(r));
    } else {
      rows_.bfloat16.to_float(op.x.row<Bf16>(from), n, 1.0f,
                              op.out.row<float>(r));
    }
  });
  return Result::kOk;
}

Result CpuBackend::Do(const Launch& launch, const Add& op) const {
  if (!HasType(op.y)) return Result::kUnsupported;
  ForRows(launch, op.x, [&](int64_t r) {
    AddRow(rows_, op.x.Rows(r, 1), op.y.Rows(op.y.rows == 1 ? 0 : r, 1), 0);
  });
  return Result::kOk;
}

Result CpuBackend::Do(const Launch& launch, const ColumnSums& op) const {
  return WithKernels(rows_, op.x.dtype, [&](const auto& k, auto t) {
    ForColumns(launch, op.x.columns, [&](int64_t first, int64_t n) {
      for (int64_t r = 0; r < op.x.rows; ++r) {
        k.add(op.x.row<decltype(t)>(r) + first, n, 1.0f, op.sums + first);
      }
    });
  });
}

}  // namespace qlora::kernels
