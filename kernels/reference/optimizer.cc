// Compiled without contraction of multiply and add.
#include <algorithm>
#include <cmath>

#include "kernels/adamw_factors.h"
#include "kernels/reference/reference_backend.h"

namespace qlora::kernels {
namespace {

double Squares(const float* x, int64_t n) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumChunk) {
    const int64_t end = std::min(n, begin + kSumChunk);
    double chunk = 0;
    for (int64_t lane = begin; lane < begin + kSumLanes; ++lane) {
      double sum = 0;
      for (int64_t i = lane; i < end; i += kSumLanes) {
        sum += double{x[i]} * x[i];
      }
      chunk += sum;
    }
    total += chunk;
  }
  return total;
}

void Update(const AdamWFactors& f, float* param, float* grad, float* exp_avg,
            float* exp_avg_sq) {
  const float g = *grad * f.clip;
  *grad = 0;
  *exp_avg += f.one_minus_beta1 * (g - *exp_avg);
  *exp_avg_sq = *exp_avg_sq * f.beta2 + f.one_minus_beta2 * g * g;
  const float denominator =
      std::sqrt(*exp_avg_sq) / f.sqrt_correction2 + f.epsilon;
  *param = *param * f.keep + f.minus_step_size * (*exp_avg / denominator);
}

// Updates one block of 8-bit moments, the elements at `first`.
void UpdateBlock(const Backend& backend, const AdamW& op,
                 const AdamWFactors& factors, int64_t first) {
  const Moments& m = op.moments;
  const int64_t block = first / kMomentBlockSize;
  const BlockwiseShape shape = {
      std::min<int64_t>(kMomentBlockSize, op.n - first), kMomentBlockSize};
  float exp_avg[kMomentBlockSize], exp_avg_sq[kMomentBlockSize];
  const DequantizeDynamic decode = {DynamicMap::kSigned,
                                    m.exp_avg_codes + first,
                                    m.exp_avg_scale + block, shape, exp_avg};
  const DequantizeDynamic decode_sq = {
      DynamicMap::kUnsigned, m.exp_avg_sq_codes + first,
      m.exp_avg_sq_scale + block, shape, exp_avg_sq};
  backend.Run({}, decode);
  backend.Run({}, decode_sq);
  for (int64_t i = 0; i < shape.num_elements; ++i) {
    Update(factors, op.param + first + i, op.grad + first + i, exp_avg + i,
           exp_avg_sq + i);
  }
  const QuantizeDynamic encode = {DynamicMap::kSigned, exp_avg, shape,
                                  m.exp_avg_codes + first,
                                  m.exp_avg_scale + block};
  const QuantizeDynamic encode_sq = {DynamicMap::kUnsigned, exp_avg_sq, shape,
                                     m.exp_avg_sq_codes + first,
                                     m.exp_avg_sq_scale + block};
  backend.Run({}, encode);
  backend.Run({}, encode_sq);
}

}  // namespace

Result Reference::Do(const Launch& /*launch*/, const AdamW& op) const {
  const Moments& m = op.moments;
  const AdamWFactors factors = FactorsOf(op);
  if (op.grad_sum_of_squares != nullptr) {
    *op.grad_sum_of_squares = Squares(op.grad, op.n);
  }
  if (m.exp_avg == nullptr) {
    for (int64_t first = 0; first < op.n; first += kMomentBlockSize) {
      UpdateBlock(*this, op, factors, first);
    }
    return Result::kOk;
  }
  for (int64_t i = 0; i < op.n; ++i) {
    Update(factors, op.param + i, op.grad + i, m.exp_avg + i, m.exp_avg_sq + i);
  }
  return Result::kOk;
}

Result Reference::Do(const Launch& /*launch*/, const SumOfSquares& op) const {
  *op.sum = Squares(op.x, op.n);
  return Result::kOk;
}

int64_t Reference::Room(const AdamW& /*op*/, int /*threads*/) const {
  return 0;
}

int64_t Reference::Room(const SumOfSquares& /*op*/, int /*threads*/) const {
  return 0;
}

}  // namespace qlora::kernels
