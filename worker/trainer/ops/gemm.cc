#include "worker/trainer/ops/gemm.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

namespace qlora::trainer {
namespace {

at::Tensor Wrap(const View& view, Op op) {
  const auto type = view.dtype == Dtype::kFloat32 ? at::kFloat : at::kBFloat16;
  const at::Tensor tensor = at::from_blob(view.data, {view.rows, view.columns},
                                          {view.stride, 1}, type);
  return op == Op::kTransposed ? tensor.t() : tensor;
}

}  // namespace

void Gemm(Op op_a, const View& a, Op op_b, const View& b, float alpha,
          float beta, const View& c) {
  at::Tensor out = Wrap(c, Op::kPlain);
  if (alpha == 1 && beta == 0) {
    at::mm_out(out, Wrap(a, op_a), Wrap(b, op_b));
  } else {
    at::addmm_out(out, out, Wrap(a, op_a), Wrap(b, op_b), beta, alpha);
  }
}

void KernelGemm(bool transpose_a, const View& a, bool transpose_b,
                const View& b, bool add, const View& c) {
  Gemm(transpose_a ? Op::kTransposed : Op::kPlain, a,
       transpose_b ? Op::kTransposed : Op::kPlain, b, 1, add ? 1 : 0, c);
}

}  // namespace qlora::trainer
