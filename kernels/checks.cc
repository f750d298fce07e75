#include "kernels/checks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>

namespace qlora::kernels {
namespace {

// Keeps every product of two sizes and an element's bytes within int64.
constexpr int64_t kMostElements = int64_t{1} << 56;
// Keeps the bytes of all threads' workspace within it.
constexpr int kMostThreads = 1 << 16;

bool IsPowerOfTwoIn(int64_t value, int64_t low, int64_t high) {
  return value >= low && value <= high &&
         std::has_single_bit(static_cast<uint64_t>(value));
}

// Enumerators count up from 0.
template <typename Enum>
bool IsUpTo(Enum value, Enum last) {
  return static_cast<int>(value) >= 0 &&
         static_cast<int>(value) <= static_cast<int>(last);
}

bool IsDtype(Dtype dtype) { return IsUpTo(dtype, Dtype::kFloat16); }

bool IsFourBit(FourBitType type) { return IsUpTo(type, FourBitType::kFp4); }

bool IsMap(DynamicMap map) { return IsUpTo(map, DynamicMap::kUnsigned); }

bool IsActivation(Activation activation) {
  return IsUpTo(activation, Activation::kGeluTanh);
}

// All of one form is there, and nothing of the other.
bool IsOneForm(std::initializer_list<const void*> one,
               std::initializer_list<const void*> other) {
  const auto are = [](const auto& parts, bool present) {
    return std::all_of(parts.begin(), parts.end(), [present](const void* part) {
      return (part != nullptr) == present;
    });
  };
  return (are(one, true) && are(other, false)) ||
         (are(one, false) && are(other, true));
}

// Of either ScalesView or MutableScales.
bool AreScales(const auto& s) {
  return IsOneForm({s.absmax}, {s.absmax_codes, s.absmax_scale, s.offset});
}

bool AreMoments(const Moments& m) {
  return IsOneForm({m.exp_avg, m.exp_avg_sq},
                   {m.exp_avg_codes, m.exp_avg_scale, m.exp_avg_sq_codes,
                    m.exp_avg_sq_scale});
}

bool IsShape(const BlockwiseShape& shape, int64_t least, int64_t most) {
  return shape.num_elements >= 0 && shape.num_elements <= kMostElements &&
         IsPowerOfTwoIn(shape.block_size, least, most);
}

bool HasSizes(const View& v) {
  return IsDtype(v.dtype) && v.rows >= 0 && v.columns > 0 &&
         v.stride >= v.columns &&
         (v.rows == 0 || v.stride <= kMostElements / v.rows);
}

// Has its elements where it says; a view with no rows needs no data.
bool IsView(const View& v) {
  return HasSizes(v) && (v.rows == 0 || v.data != nullptr);
}

bool IsFloatView(const View& v) {
  return IsView(v) && v.dtype == Dtype::kFloat32;
}

bool IsLike(const View& v, const View& other) {
  return IsView(v) && v.rows == other.rows && v.columns == other.columns;
}

bool IsSame(const View& v, const View& other) {
  return IsLike(v, other) && v.dtype == other.dtype;
}

// Absent, or the rows and columns of `other`.
bool IsOptional(const View& v, const View& other) {
  return v.data == nullptr || IsLike(v, other);
}

bool IsLikeOrOneRow(const View& v, const View& other) {
  return IsView(v) && v.columns == other.columns &&
         (v.rows == other.rows || v.rows == 1);
}

// A pointer that is read or written once a row.
bool IsPerRow(const void* p, const View& v) {
  return p != nullptr || v.rows == 0;
}

bool IsInt8(const View& v, const void* codes, const float* scale) {
  return IsView(v) && IsPerRow(codes, v) && IsPerRow(scale, v);
}

bool IsDynamic(DynamicMap map, const BlockwiseShape& shape, const void* values,
               const uint8_t* codes, const float* scale) {
  return IsMap(map) && IsShape(shape, 64, 4096) &&
         (shape.num_elements == 0 ||
          (values != nullptr && codes != nullptr && scale != nullptr));
}

bool IsNorm(const View& x, const float* weight, const float* rstd) {
  return IsFloatView(x) && weight != nullptr && IsPerRow(rstd, x);
}

// The heads lie within the row.
bool IsHeadRow(const Rotary& op) {
  return op.heads > 0 && op.dim > 0 && op.dim <= kMostHeadDim &&
         op.heads <= op.x.columns / op.dim && op.rotary_dim > 0 &&
         op.rotary_dim % 2 == 0 && op.rotary_dim <= op.dim;
}

bool IsFraction(double value) { return value >= 0 && value < 1; }

bool IsCap(float soft_cap) { return soft_cap >= 0 && std::isfinite(soft_cap); }

bool IsLoss(const LossOptions& o) {
  return IsFraction(o.label_smoothing) && o.z_loss >= 0 && IsCap(o.soft_cap);
}

bool AreOffsets(const Attention& op) {
  if (op.documents < 0 || op.offsets == nullptr || op.offsets[0] != 0) {
    return false;
  }
  for (int64_t d = 0; d < op.documents; ++d) {
    if (op.offsets[d] > op.offsets[d + 1]) return false;
  }
  return true;
}

bool AreHeads(const Attention& op) {
  return op.heads > 0 && op.kv_heads > 0 && op.heads % op.kv_heads == 0 &&
         op.q.columns == int64_t{op.heads} * op.dim &&
         op.k.columns == int64_t{op.kv_heads} * op.dim;
}

bool AreWithin(const int32_t* indices, int64_t n, int64_t least, int64_t end) {
  return std::all_of(indices, indices + n, [=](int32_t index) {
    return index >= least && index < end;
  });
}

// Below 0: ignored.
bool AreTargets(const int32_t* targets, int64_t n, int64_t columns) {
  return AreWithin(targets, n, INT32_MIN, columns);
}

bool IsCount(int64_t n) { return n >= 0 && n <= kMostElements; }

}  // namespace

bool AreThreads(int threads) { return threads >= 1 && threads <= kMostThreads; }

bool HasRoom(const Launch& launch, int64_t bytes) {
  return AreThreads(launch.threads) && launch.workspace_bytes >= bytes &&
         (bytes == 0 ||
          (launch.workspace != nullptr &&
           reinterpret_cast<uintptr_t>(launch.workspace) % 64 == 0));
}

bool IsSized(const Quantize& op) {
  return IsShape(op.shape, 32, 4096) && AreScales(op.scales);
}

bool IsSized(const AdamW& op) { return IsCount(op.n); }

bool IsSized(const SumOfSquares& op) { return IsCount(op.n); }

bool IsSized(const Attention& op) {
  return op.dim > 0 && op.dim <= 256 && op.past >= 0 && op.past <= INT32_MAX &&
         AreOffsets(op);
}

bool IsSized(const AttentionBackward& op) { return IsSized(op.forward); }

bool IsSized(const HeadLoss& op) {
  return HasSizes(op.x) && op.x.rows <= INT32_MAX && HasSizes(op.weight) &&
         op.weight.rows > 0 && op.weight.rows <= INT32_MAX &&
         op.weight.columns == op.x.columns && op.chunk >= 1 &&
         std::min(op.chunk, op.x.rows) <= kMostElements / op.weight.rows;
}

bool IsValid(const Quantize& op) {
  return IsSized(op) && IsFourBit(op.type) && IsDtype(op.dtype) &&
         (op.shape.num_elements == 0 ||
          (op.x != nullptr && op.codes != nullptr));
}

bool IsValid(const Dequantize& op) {
  return IsFourBit(op.type) && IsPowerOfTwoIn(op.block_size, 32, 4096) &&
         IsView(op.out) && op.rows >= 0 &&
         op.rows <= kMostElements / op.out.columns && op.row_begin >= 0 &&
         op.row_begin <= op.rows && op.out.rows <= op.rows - op.row_begin &&
         (op.out.rows == 0 || (op.codes != nullptr && AreScales(op.scales)));
}

bool IsValid(const QuantizeInt8Rows& op) {
  return IsInt8(op.x, op.codes, op.scale);
}

bool IsValid(const DequantizeInt8Rows& op) {
  return IsInt8(op.out, op.codes, op.scale);
}

bool IsValid(const QuantizeDynamic& op) {
  return IsDynamic(op.map, op.shape, op.x, op.codes, op.scale);
}

bool IsValid(const DequantizeDynamic& op) {
  return IsDynamic(op.map, op.shape, op.out, op.codes, op.scale);
}

bool IsValid(const RmsNorm& op) {
  return IsNorm(op.x, op.weight, op.rstd) && IsOptional(op.add, op.x) &&
         IsLike(op.out, op.x) && op.eps >= 0;
}

bool IsValid(const RmsNormBackward& op) {
  return IsNorm(op.x, op.weight, op.rstd) && IsLike(op.dy, op.x) &&
         IsSame(op.dx, op.x);
}

bool IsValid(const LayerNorm& op) {
  return IsNorm(op.x, op.weight, op.rstd) && IsPerRow(op.mean, op.x) &&
         IsOptional(op.add, op.x) && IsLike(op.out, op.x) && op.eps >= 0;
}

bool IsValid(const LayerNormBackward& op) {
  return IsNorm(op.x, op.weight, op.rstd) && IsPerRow(op.mean, op.x) &&
         IsLike(op.dy, op.x) && IsSame(op.dx, op.x);
}

bool IsValid(const Rotary& op) {
  const bool norms = op.query_norm != nullptr || op.key_norm != nullptr;
  return IsView(op.x) && IsHeadRow(op) && op.positions >= 0 &&
         (op.x.rows == 0 ||
          (op.cos != nullptr && op.sin != nullptr && op.position != nullptr)) &&
         op.query_heads >= 0 && op.query_heads <= op.heads &&
         op.norm_eps >= 0 &&
         (!norms || (!op.inverse && IsPerRow(op.rstd, op.x)));
}

bool IsValid(const RotaryNormBackward& op) {
  return IsValid(op.rotary) && !op.rotary.inverse && IsView(op.input) &&
         op.input.rows == op.rotary.x.rows &&
         op.input.columns >= int64_t{op.rotary.heads} * op.rotary.dim &&
         op.input.dtype == op.rotary.x.dtype &&
         (op.rotary.query_norm != nullptr || op.dquery_norm == nullptr) &&
         (op.rotary.key_norm != nullptr || op.dkey_norm == nullptr);
}

bool IsValid(const GatedActivation& op) {
  return IsActivation(op.activation) && IsView(op.gate) &&
         IsSame(op.up, op.gate) && IsSame(op.out, op.gate);
}

bool IsValid(const GatedActivationBackward& op) {
  return IsActivation(op.activation) && IsView(op.gate) &&
         IsSame(op.up, op.gate) && IsSame(op.d, op.gate);
}

bool IsValid(const Dropout& op) {
  return IsView(op.x) && IsSame(op.out, op.x) && IsPerRow(op.row_keys, op.x) &&
         IsFraction(op.probability);
}

bool IsValid(const Embedding& op) {
  return IsFloatView(op.out) && IsView(op.table) &&
         op.table.columns == op.out.columns && IsPerRow(op.tokens, op.out) &&
         (op.out.rows == 0 || op.table.rows > 0);
}

bool IsValid(const EmbeddingBackward& op) {
  return IsFloatView(op.dx) && IsFloatView(op.dtable) &&
         op.dtable.columns == op.dx.columns && IsPerRow(op.tokens, op.dx) &&
         (op.dx.rows == 0 || op.dtable.rows > 0);
}

bool IsValid(const Convert& op) {
  return IsView(op.out) && IsLikeOrOneRow(op.x, op.out);
}

bool IsValid(const Add& op) {
  return IsFloatView(op.x) && IsLikeOrOneRow(op.y, op.x);
}

bool IsValid(const ColumnSums& op) {
  return IsView(op.x) && IsPerRow(op.sums, op.x);
}

bool IsValid(const CrossEntropy& op) {
  return IsView(op.logits) && IsPerRow(op.targets, op.logits) &&
         IsPerRow(op.loss, op.logits) && IsLoss(op.options);
}

bool IsValid(const AdamW& op) {
  return IsSized(op) && op.step >= 1 &&
         (op.n == 0 || (op.param != nullptr && op.grad != nullptr &&
                        AreMoments(op.moments))) &&
         IsFraction(op.beta1) && IsFraction(op.beta2) && op.epsilon >= 0 &&
         op.max_grad_norm >= 0 &&
         (op.max_grad_norm == 0 || op.clip_sum_of_squares != nullptr);
}

bool IsValid(const SumOfSquares& op) {
  return IsSized(op) && op.sum != nullptr && (op.n == 0 || op.x != nullptr);
}

bool IsValid(const Attention& op) {
  return IsSized(op) && op.offsets[op.documents] == op.q.rows && IsView(op.q) &&
         IsView(op.k) && op.q.dtype == op.k.dtype &&
         op.q.dtype != Dtype::kFloat16 && IsSame(op.v, op.k) &&
         IsSame(op.out, op.q) && AreHeads(op) &&
         IsUpTo(op.mask, AttentionMask::kPrefix) && op.window >= 0 &&
         std::isfinite(op.scale) && IsCap(op.soft_cap) &&
         op.k.rows - op.past == op.q.rows &&
         (op.past == 0 ||
          (op.documents == 1 && op.mask == AttentionMask::kCausal)) &&
         (op.mask != AttentionMask::kPrefix || op.prefix != nullptr ||
          op.documents == 0);
}

bool IsValid(const AttentionBackward& op) {
  const Attention& f = op.forward;
  return IsValid(f) && f.past == 0 && IsPerRow(f.lse, f.q) &&
         IsSame(op.dout, f.q) && IsSame(op.dq, f.q) && IsSame(op.dk, f.k) &&
         IsSame(op.dv, f.k);
}

bool IsValid(const HeadLoss& op) {
  return IsSized(op) && IsView(op.x) && op.x.dtype != Dtype::kFloat16 &&
         IsView(op.weight) && op.gemm != nullptr &&
         IsPerRow(op.targets, op.x) && IsPerRow(op.loss, op.x) &&
         IsLoss(op.options) && (op.dx.data == nullptr || IsSame(op.dx, op.x)) &&
         (op.dweight.data == nullptr ||
          (op.dx.data != nullptr && IsFloatView(op.dweight) &&
           IsLike(op.dweight, op.weight)));
}

bool AreIndicesValid(const Rotary& op) {
  return AreWithin(op.position, op.x.rows, 0, op.positions);
}

bool AreIndicesValid(const RotaryNormBackward& op) {
  return AreIndicesValid(op.rotary);
}

bool AreIndicesValid(const Embedding& op) {
  return AreWithin(op.tokens, op.out.rows, 0, op.table.rows);
}

bool AreIndicesValid(const EmbeddingBackward& op) {
  return AreWithin(op.tokens, op.dx.rows, 0, op.dtable.rows);
}

bool AreIndicesValid(const CrossEntropy& op) {
  return AreTargets(op.targets, op.logits.rows, op.logits.columns);
}

bool AreIndicesValid(const HeadLoss& op) {
  return AreTargets(op.targets, op.x.rows, op.weight.rows);
}

}  // namespace qlora::kernels
