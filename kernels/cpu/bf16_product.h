// Small products of bfloat16 tiles with float32 sums, for where a call of the
// vendor's is too dear.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/types.h"

namespace qlora::kernels {

struct Bf16Product {
  // "amx".
  const char* name;
  // Around a thread's products: begin before the first, end after the last. May
  // be null.
  void (*begin)();
  void (*end)();
  // c[rows, columns] = or, if `add`, += a[rows, depth] b[depth, columns]; all
  // three are multiples of 32. Leading dimensions are in elements of a and c;
  // in b pairs of rows are interleaved: b[k][j] is element 2 j + k % 2 of the
  // pair k / 2, and pairs are 2 ldb elements apart.
  void (*multiply)(int64_t rows, int64_t columns, int64_t depth, const Bf16* a,
                   int64_t lda, const Bf16* b, int64_t ldb, float* c,
                   int64_t ldc, bool add);
};

// Plain loops, what the others are tested against.
extern const Bf16Product kBf16PlainProduct;

// What this processor (and kernel) has, the fastest first; may be empty.
std::span<const Bf16Product* const> Bf16Products();

}  // namespace qlora::kernels
