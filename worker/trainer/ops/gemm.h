// The vendor's matrix product on views.
#pragma once

#include "worker/trainer/ops/view.h"

namespace qlora::trainer {

enum class Op { kPlain, kTransposed };

// c = alpha * op(a) op(b) + beta * c. All of one type. With beta 0 c may be
// uninitialized. Throws c10::Error (see torch_guard.h).
void Gemm(Op op_a, const View& a, Op op_b, const View& b, float alpha,
          float beta, const View& c);

// The same for the kernel library (kernels::Gemm).
void KernelGemm(bool transpose_a, const View& a, bool transpose_b,
                const View& b, bool add, const View& c);

}  // namespace qlora::trainer
