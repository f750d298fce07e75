// The kernel library's matrices under the trainer's names.
#pragma once

#include "kernels/types.h"

namespace qlora::trainer {

using kernels::Bf16;
using kernels::Dtype;
using kernels::ElementSize;
using kernels::FloatView;
using kernels::MakeView;
using kernels::View;

// Calls f(T{}) with the element type; the trainer computes in these two.
template <typename F>
decltype(auto) WithType(Dtype dtype, F&& f) {
  return dtype == Dtype::kFloat32 ? f(float{}) : f(Bf16{});
}

}  // namespace qlora::trainer
