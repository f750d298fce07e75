// A small call of every op, for tests of what all of them have in common:
//
//   const RmsNorm op = SampleOf<RmsNorm>(samples);
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/reference/element.h"
#include "tests/unit/kernels/plain_gemm.h"

namespace qlora::kernels {

// The buffers of calls, filled, and what is common to them. They live as long
// as this.
class Samples {
 public:
  struct Kind {
    int64_t rows = 5;
    // Of what may be of any type.
    Dtype dtype = Dtype::kFloat32;
    // Nested scales, 8-bit moments, rotation with norms, a loss with all its
    // terms, a window and a cap; dropout that adds.
    bool rich = false;
  };
  static constexpr int64_t kColumns = 64;

  explicit Samples(const Kind& kind) : kind_(kind) {}
  virtual ~Samples() = default;
  Samples(const Samples&) = delete;
  Samples& operator=(const Samples&) = delete;

  int64_t rows() const { return kind_.rows; }
  int64_t elements() const { return kind_.rows * kColumns; }
  Dtype dtype() const { return kind_.dtype; }
  bool rich() const { return kind_.rich; }

  template <typename T>
  T* Put(const std::vector<T>& values) {
    std::vector<char> bytes(values.size() * sizeof(T));
    if (!values.empty()) {
      std::memcpy(bytes.data(), values.data(), bytes.size());
    }
    return static_cast<T*>(Place(std::move(bytes)));
  }
  template <typename T>
  T* Some(int64_t n) {
    std::vector<T> values(n);
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<T>(i * 37 % 101);
    return Put(values);
  }
  // Between 0.5 and 1.5.
  float* Floats(int64_t n) {
    std::vector<float> values(n);
    for (int64_t i = 0; i < n; ++i) values[i] = Value(i);
    return Put(values);
  }
  int32_t* Indices(int64_t n, int32_t below) {
    std::vector<int32_t> values(n);
    for (int64_t i = 0; i < n; ++i) {
      values[i] = static_cast<int32_t>(i * 3 % below);
    }
    return Put(values);
  }
  View Matrix(int64_t rows, int64_t columns, Dtype dtype) {
    std::vector<char> bytes(rows * columns * ElementSize(dtype));
    for (int64_t i = 0; i < rows * columns; ++i) {
      StoreElement(Value(i), bytes.data(), dtype, i);
    }
    return MakeView(Place(std::move(bytes)), dtype, rows, columns);
  }
  View Typed() { return Matrix(rows(), kColumns, dtype()); }
  View Float32() { return Matrix(rows(), kColumns, Dtype::kFloat32); }

 private:
  // Memory of the backend that holds these bytes.
  virtual void* Place(std::vector<char> bytes) = 0;

  static float Value(int64_t i) {
    return 0.5f + static_cast<float>(i * 29 % 97) / 96;
  }

  const Kind kind_;
};

template <typename Op>
Op SampleOf(Samples& s) = delete;

template <>
inline Quantize SampleOf(Samples& s) {
  const BlockwiseShape shape = {s.elements(), 64};
  Quantize op = {.x = s.Typed().data,
                 .dtype = s.dtype(),
                 .shape = shape,
                 .codes = s.Some<uint8_t>(shape.code_bytes()),
                 .scales = {}};
  if (s.rich()) {
    op.scales = {.absmax_codes = s.Some<uint8_t>(shape.num_blocks()),
                 .absmax_scale = s.Floats(shape.num_nested_blocks()),
                 .offset = s.Put<float>({0})};
  } else {
    op.scales = {.absmax = s.Floats(shape.num_blocks())};
  }
  return op;
}

template <>
inline Dequantize SampleOf(Samples& s) {
  const auto q = SampleOf<Quantize>(s);
  return {.codes = q.codes,
          .scales = {q.scales.absmax, q.scales.absmax_codes,
                     q.scales.absmax_scale, q.scales.offset},
          .rows = s.rows(),
          .out = s.Typed()};
}

template <>
inline QuantizeInt8Rows SampleOf(Samples& s) {
  return {.x = s.Typed(),
          .codes = s.Some<int8_t>(s.elements()),
          .scale = s.Floats(s.rows())};
}

template <>
inline DequantizeInt8Rows SampleOf(Samples& s) {
  return {.codes = s.Some<int8_t>(s.elements()),
          .scale = s.Floats(s.rows()),
          .out = s.Typed()};
}

template <>
inline QuantizeDynamic SampleOf(Samples& s) {
  const BlockwiseShape shape = {s.elements(), 64};
  return {.map = s.rich() ? DynamicMap::kUnsigned : DynamicMap::kSigned,
          .x = s.Floats(s.elements()),
          .shape = shape,
          .codes = s.Some<uint8_t>(s.elements()),
          .scale = s.Floats(shape.num_blocks())};
}

template <>
inline DequantizeDynamic SampleOf(Samples& s) {
  const auto q = SampleOf<QuantizeDynamic>(s);
  return {.map = q.map,
          .codes = q.codes,
          .scale = q.scale,
          .shape = q.shape,
          .out = s.Floats(s.elements())};
}

template <>
inline RmsNorm SampleOf(Samples& s) {
  return {.x = s.Float32(),
          .add = s.rich() ? s.Typed() : View{},
          .weight = s.Floats(s.kColumns),
          .eps = 1e-5f,
          .out = s.Typed(),
          .rstd = s.Floats(s.rows())};
}

template <>
inline RmsNormBackward SampleOf(Samples& s) {
  return {.x = s.Float32(),
          .weight = s.Floats(s.kColumns),
          .rstd = s.Floats(s.rows()),
          .dy = s.Typed(),
          .dx = s.Float32(),
          .dweight = s.Floats(s.kColumns)};
}

template <>
inline LayerNorm SampleOf(Samples& s) {
  return {.x = s.Float32(),
          .add = s.rich() ? s.Typed() : View{},
          .weight = s.Floats(s.kColumns),
          .bias = s.Floats(s.kColumns),
          .eps = 1e-5f,
          .out = s.Typed(),
          .mean = s.Floats(s.rows()),
          .rstd = s.Floats(s.rows())};
}

template <>
inline LayerNormBackward SampleOf(Samples& s) {
  return {.x = s.Float32(),
          .weight = s.Floats(s.kColumns),
          .mean = s.Floats(s.rows()),
          .rstd = s.Floats(s.rows()),
          .dy = s.Typed(),
          .dx = s.Float32(),
          .dweight = s.Floats(s.kColumns),
          .dbias = s.Floats(s.kColumns)};
}

template <>
inline Rotary SampleOf(Samples& s) {
  constexpr int kHeads = 4, kDim = Samples::kColumns / kHeads, kPositions = 7;
  Rotary op = {.x = s.Typed(),
               .heads = kHeads,
               .dim = kDim,
               .rotary_dim = kDim,
               .cos = s.Floats(kPositions * kDim / 2),
               .sin = s.Floats(kPositions * kDim / 2),
               .positions = kPositions,
               .position = s.Indices(s.rows(), kPositions)};
  if (s.rich()) {
    op.query_norm = s.Floats(kDim);
    op.key_norm = s.Floats(kDim);
    op.query_heads = 3;
    op.norm_eps = 1e-5f;
    op.rstd = s.Floats(s.rows() * kHeads);
  }
  return op;
}

template <>
inline RotaryNormBackward SampleOf(Samples& s) {
  const auto rotary = SampleOf<Rotary>(s);
  return {.rotary = rotary,
          .input = s.Typed(),
          .dquery_norm = s.rich() ? s.Floats(rotary.dim) : nullptr,
          .dkey_norm = s.rich() ? s.Floats(rotary.dim) : nullptr};
}

template <>
inline GatedActivation SampleOf(Samples& s) {
  return {.gate = s.Typed(), .up = s.Typed(), .out = s.Typed()};
}

template <>
inline GatedActivationBackward SampleOf(Samples& s) {
  return {.activation = Activation::kGeluTanh,
          .gate = s.Typed(),
          .up = s.Typed(),
          .d = s.Typed()};
}

template <>
inline Dropout SampleOf(Samples& s) {
  return {.x = s.Typed(),
          .row_keys = s.Some<uint64_t>(s.rows()),
          .probability = 0.25f,
          .add = s.rich(),
          .out = s.Typed()};
}

template <>
inline Embedding SampleOf(Samples& s) {
  return {.tokens = s.Indices(s.rows(), 4),
          .table = s.Matrix(4, s.kColumns, s.dtype()),
          .scale = 2,
          .out = s.Float32()};
}

template <>
inline EmbeddingBackward SampleOf(Samples& s) {
  return {.tokens = s.Indices(s.rows(), 4),
          .dx = s.Float32(),
          .dtable = s.Matrix(4, s.kColumns, Dtype::kFloat32)};
}

template <>
inline Convert SampleOf(Samples& s) {
  return {.x = s.rich() ? s.Typed() : s.Float32(), .out = s.Typed()};
}

template <>
inline Add SampleOf(Samples& s) {
  return {.y = s.Typed(), .x = s.Float32()};
}

template <>
inline ColumnSums SampleOf(Samples& s) {
  return {.x = s.Typed(), .sums = s.Floats(s.kColumns)};
}

inline LossOptions SampleLoss(const Samples& s) {
  if (!s.rich()) return {};
  return {.label_smoothing = 0.1f, .z_loss = 1e-3f, .soft_cap = 30};
}

template <>
inline CrossEntropy SampleOf(Samples& s) {
  return {.logits = s.Typed(),
          .targets = s.Indices(s.rows(), s.kColumns),
          .options = SampleLoss(s),
          .backward = true,
          .loss = s.Some<double>(s.rows())};
}

template <>
inline AdamW SampleOf(Samples& s) {
  const int64_t n = s.elements();
  const int64_t blocks = (n + kMomentBlockSize - 1) / kMomentBlockSize;
  AdamW op = {.n = n,
              .param = s.Floats(n),
              .grad = s.Floats(n),
              .moments = {},
              .learning_rate = 1e-2,
              .max_grad_norm = 1,
              .clip_sum_of_squares = s.Put<double>({4}),
              .grad_sum_of_squares = s.Put<double>({0})};
  if (s.rich()) {
    op.moments = {.exp_avg_codes = s.Some<uint8_t>(n),
                  .exp_avg_scale = s.Floats(blocks),
                  .exp_avg_sq_codes = s.Some<uint8_t>(n),
                  .exp_avg_sq_scale = s.Floats(blocks)};
  } else {
    op.moments = {.exp_avg = s.Floats(n), .exp_avg_sq = s.Floats(n)};
  }
  return op;
}

template <>
inline SumOfSquares SampleOf(Samples& s) {
  return {.n = s.elements(),
          .x = s.Floats(s.elements()),
          .sum = s.Put<double>({0})};
}

template <>
inline Attention SampleOf(Samples& s) {
  const auto narrow = [&] {
    return s.Matrix(s.rows(), s.kColumns / 2, s.dtype());
  };
  return {.heads = 4,
          .kv_heads = 2,
          .dim = Samples::kColumns / 4,
          .window = s.rich() ? 3 : 0,
          .soft_cap = s.rich() ? 20.0f : 0.0f,
          .offsets = s.Put<int32_t>({0, static_cast<int32_t>(s.rows())}),
          .documents = 1,
          .q = s.Typed(),
          .k = narrow(),
          .v = narrow(),
          .out = s.Typed(),
          .lse = s.Floats(4 * s.rows())};
}

template <>
inline AttentionBackward SampleOf(Samples& s) {
  const auto forward = SampleOf<Attention>(s);
  const auto narrow = [&] {
    return s.Matrix(s.rows(), s.kColumns / 2, s.dtype());
  };
  return {.forward = forward,
          .dout = s.Typed(),
          .dq = s.Typed(),
          .dk = narrow(),
          .dv = narrow()};
}

// Rich: a weight of another type than x.
template <>
inline HeadLoss SampleOf(Samples& s) {
  constexpr int32_t kVocabulary = 11;
  const Dtype dtype = s.rich() ? Dtype::kFloat16 : s.dtype();
  return {.x = s.Typed(),
          .weight = s.Matrix(kVocabulary, s.kColumns, dtype),
          .targets = s.Indices(s.rows(), kVocabulary),
          .options = SampleLoss(s),
          .chunk = 2,
          .gemm = PlainGemm,
          .loss = s.Some<double>(s.rows()),
          .dx = s.Typed(),
          .dweight = s.Matrix(kVocabulary, s.kColumns, Dtype::kFloat32)};
}

// Calls f.operator()<Op>(name) for each op that every backend has, and for each
// of CPUs only.
template <typename F>
void ForCommonOps(F f) {
#define QLORA_CALL(Op) f.template operator()<Op>(#Op);
  QLORA_PLAIN_OPS(QLORA_CALL)
  QLORA_WORKSPACE_OPS(QLORA_CALL)
}
template <typename F>
void ForCpuOps(F f) {
  QLORA_CPU_OPS(QLORA_CALL)
#undef QLORA_CALL
}

// In the host's memory, watched.
class HostSamples final : public Samples {
 public:
  using Samples::Samples;

  // Of two of one kind, after calls of one op: the same bytes everywhere.
  bool operator==(const HostSamples& other) const {
    return std::ranges::equal(
        buffers_, other.buffers_,
        [](const Buffer& a, const Buffer& b) { return a.now == b.now; });
  }
  // No buffer has changed, nor what lies around them.
  bool AreUntouched() const {
    for (const Buffer& b : buffers_) {
      if (b.now != b.before) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  struct Buffer {
    std::vector<char> now, before;
  };

  void* Place(std::vector<char> bytes) override {
    bytes.insert(bytes.begin(), kGuard, '\x5a');
    bytes.insert(bytes.end(), kGuard, '\x5a');
    buffers_.push_back({bytes, bytes});
    return buffers_.back().now.data() + kGuard;
  }

  std::vector<Buffer> buffers_;
};

}  // namespace qlora::kernels
