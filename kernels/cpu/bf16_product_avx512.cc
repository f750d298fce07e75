// With AVX512_BF16: one instruction adds two products to each of sixteen sums.
#include <immintrin.h>

#include "kernels/cpu/bf16_product.h"

namespace qlora::kernels {
namespace {

// M rows by NV vectors of c.
template <int M, int NV>
inline __attribute__((always_inline)) void Micro(int64_t depth, const Bf16* a,
                                                 int64_t lda, const Bf16* b,
                                                 int64_t ldb, float* c,
                                                 int64_t ldc, bool add) {
  __m512 sums[M][NV];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      sums[i][j] =
          add ? _mm512_loadu_ps(c + i * ldc + 16 * j) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; k += 2) {
    __m512i row[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      row[j] = _mm512_loadu_si512(b + k * ldb + 32 * j);
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      int pair;
      __builtin_memcpy(&pair, a + i * lda + k, sizeof pair);
      const auto left = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        sums[i][j] = _mm512_dpbf16_ps(sums[i][j], left, (__m512bh)row[j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      _mm512_storeu_ps(c + i * ldc + 16 * j, sums[i][j]);
    }
  }
}

// All rows of NV vectors' columns.
template <int NV>
void Panel(int64_t rows, int64_t depth, const Bf16* a, int64_t lda,
           const Bf16* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  int64_t i = 0;
  for (; i + 6 <= rows; i += 6) {
    Micro<6, NV>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
  }
  if (i + 4 <= rows) {
    Micro<4, NV>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
    i += 4;
  }
  if (i < rows) {
    Micro<2, NV>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
  }
}

void Multiply(int64_t rows, int64_t columns, int64_t depth, const Bf16* a,
              int64_t lda, const Bf16* b, int64_t ldb, float* c, int64_t ldc,
              bool add) {
  int64_t j = 0;
  for (; j + 64 <= columns; j += 64) {
    Panel<4>(rows, depth, a, lda, b + 2 * j, ldb, c + j, ldc, add);
  }
  if (j < columns) {
    Panel<2>(rows, depth, a, lda, b + 2 * j, ldb, c + j, ldc, add);
  }
}

}  // namespace

extern const Bf16Product kBf16Avx512Product;
const Bf16Product kBf16Avx512Product = {"avx512_bf16", nullptr, nullptr,
                                        Multiply};

}  // namespace qlora::kernels
