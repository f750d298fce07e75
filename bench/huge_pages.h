// Memory of ours: in huge pages, as the trainer's buffers lie. What a peer
// makes lies where it puts it.
#pragma once

#include "ATen/core/Tensor.h"

namespace qlora::bench {

// A copy; aborts where there is no memory.
at::Tensor InHugePages(const at::Tensor& x);

}  // namespace qlora::bench
