// The product that HeadLoss is given where no vendor's library is linked.
#pragma once

#include <cstdint>

#include "kernels/reference/element.h"
#include "kernels/types.h"

namespace qlora::kernels {

inline void PlainGemm(bool transpose_a, const View& a, bool transpose_b,
                      const View& b, bool add, const View& c) {
  const int64_t depth = transpose_a ? a.rows : a.columns;
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.columns; ++j) {
      double sum = add ? Get(c, i, j) : 0;
      for (int64_t k = 0; k < depth; ++k) {
        sum += double{transpose_a ? Get(a, k, i) : Get(a, i, k)} *
               (transpose_b ? Get(b, j, k) : Get(b, k, j));
      }
      Set(c, i, j, static_cast<float>(sum));
    }
  }
}

}  // namespace qlora::kernels
