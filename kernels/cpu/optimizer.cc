#include <algorithm>

#include "kernels/adamw_factors.h"
#include "kernels/cpu/cpu_backend.h"

namespace qlora::kernels {
namespace {

int64_t Chunks(int64_t n) { return (n + kSumChunk - 1) / kSumChunk; }

int64_t SumBytes(int64_t n) {
  return Chunks(n) * static_cast<int64_t>(sizeof(double));
}

// sums[c] = f(first, count) for each chunk, if sums; returns their sum.
template <typename F>
double ForChunks(const Launch& launch, int64_t n, double* sums, F f) {
  launch.parallel_for(Chunks(n), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c * kSumChunk;
      const double sum = f(first, std::min(kSumChunk, n - first));
      if (sums != nullptr) sums[c] = sum;
    }
  });
  double total = 0;
  for (int64_t c = 0; sums != nullptr && c < Chunks(n); ++c) total += sums[c];
  return total;
}

// Elements [first, first + n) of 8-bit moments, first at a block's begin.
struct CodedUpdate {
  const AdamW& op;
  const AdamWFactors factors;
  const ExactKernels& exact;
  const QuantizeKernels& quantize;

  void Block(int64_t first, int64_t n) const {
    const Moments& m = op.moments;
    const int64_t block = first / kMomentBlockSize;
    uint8_t* codes = m.exp_avg_codes + first;
    uint8_t* sq_codes = m.exp_avg_sq_codes + first;
    float exp_avg[kMomentBlockSize], exp_avg_sq[kMomentBlockSize];
    quantize.expand_dynamic(DynamicMap::kSigned, codes, n,
                            m.exp_avg_scale[block], exp_avg);
    quantize.expand_dynamic(DynamicMap::kUnsigned, sq_codes, n,
                            m.exp_avg_sq_scale[block], exp_avg_sq);
    exact.adamw(factors, n, op.param + first, op.grad + first, exp_avg,
                exp_avg_sq);
    m.exp_avg_scale[block] =
        quantize.quantize_dynamic(DynamicMap::kSigned, exp_avg, n, codes);
    m.exp_avg_sq_scale[block] = quantize.quantize_dynamic(
        DynamicMap::kUnsigned, exp_avg_sq, n, sq_codes);
  }
  double Chunk(int64_t first, int64_t n) const {
    const bool summed = op.grad_sum_of_squares != nullptr;
    const double sum = summed ? exact.sum_of_squares(op.grad + first, n) : 0;
    for (int64_t b = 0; b < n; b += kMomentBlockSize) {
      Block(first + b, std::min<int64_t>(kMomentBlockSize, n - b));
    }
    return sum;
  }
};

}  // namespace

Result CpuBackend::Do(const Launch& launch, const AdamW& op) const {
  const Moments& m = op.moments;
  const AdamWFactors factors = FactorsOf(op);
  const CodedUpdate coded = {op, factors, *rows_.exact, quantize_};
  auto* sums = op.grad_sum_of_squares == nullptr
                   ? nullptr
                   : static_cast<double*>(launch.workspace);
  const double total =
      ForChunks(launch, op.n, sums, [&](int64_t first, int64_t count) {
        if (m.exp_avg == nullptr) return coded.Chunk(first, count);
        return rows_.exact->adamw(factors, count, op.param + first,
                                  op.grad + first, m.exp_avg + first,
                                  m.exp_avg_sq + first);
      });
  if (op.grad_sum_of_squares != nullptr) *op.grad_sum_of_squares = total;
  return Result::kOk;
}

Result CpuBackend::Do(const Launch& launch, const SumOfSquares& op) const {
  *op.sum = ForChunks(launch, op.n, static_cast<double*>(launch.workspace),
                      [&](int64_t first, int64_t count) {
                        return rows_.exact->sum_of_squares(op.x + first, count);
                      });
  return Result::kOk;
}

int64_t CpuBackend::Room(const AdamW& op, int /*threads*/) const {
  return op.grad_sum_of_squares == nullptr ? 0 : SumBytes(op.n);
}

int64_t CpuBackend::Room(const SumOfSquares& op, int /*threads*/) const {
  return SumBytes(op.n);
}

}  // namespace qlora::kernels
