// The kernel library's matrices under the trainer's names.
#pragma once

#include "kernels/types.h"

namespace qlora::trainer {

using kernels::Dtype;
using kernels::ElementSize;
using kernels::FloatView;
using kernels::MakeView;
using kernels::View;

}  // namespace qlora::trainer
