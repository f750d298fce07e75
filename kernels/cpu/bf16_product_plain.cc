#include "kernels/cpu/bf16_product.h"
#include "kernels/reference/element.h"

namespace qlora::kernels {
namespace {

void Multiply(int64_t rows, int64_t columns, int64_t depth, const Bf16* a,
              int64_t lda, const Bf16* b, int64_t ldb, float* c, int64_t ldc,
              bool add) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      float sum = add ? c[i * ldc + j] : 0;
      for (int64_t k = 0; k < depth; ++k) {
        sum += ToFloat(a[i * lda + k]) *
               ToFloat(b[k / 2 * 2 * ldb + 2 * j + k % 2]);
      }
      c[i * ldc + j] = sum;
    }
  }
}

}  // namespace

const Bf16Product kBf16PlainProduct = {"plain", nullptr, nullptr, Multiply};

}  // namespace qlora::kernels
