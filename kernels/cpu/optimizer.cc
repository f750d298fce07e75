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

}  // namespace

Result CpuBackend::Do(const Launch& launch, const AdamW& op) const {
  const Moments& m = op.moments;
  if (op.n > 0 && m.exp_avg == nullptr) return Result::kUnsupported;
  const AdamWFactors factors = FactorsOf(op);
  auto* sums = op.grad_sum_of_squares == nullptr
                   ? nullptr
                   : static_cast<double*>(launch.workspace);
  const double total =
      ForChunks(launch, op.n, sums, [&](int64_t first, int64_t count) {
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
