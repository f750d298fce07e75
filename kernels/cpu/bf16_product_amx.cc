// With AMX: tiles of sixteen rows of 64 bytes. Four tiles of c at a time, two
// of a and two of b.
#include <immintrin.h>

#include "kernels/cpu/bf16_product.h"

namespace qlora::kernels {
namespace {

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

void Begin() {
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  // GCC 12's intrinsic names only the first eight bytes as read: without this
  // the stores to the others are taken for dead.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void End() { _tile_release(); }

// 32 rows by 32 columns of c.
void Block(int64_t depth, const Bf16* a, int64_t lda, const Bf16* b,
           int64_t ldb, float* c, int64_t ldc, bool add) {
  const int64_t a_bytes = lda * 2, b_bytes = ldb * 4, c_bytes = ldc * 4;
  if (add) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    _tile_loadd(2, c + 16 * ldc, c_bytes);
    _tile_loadd(3, c + 16 * ldc + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; k += 32) {
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(5, a + 16 * lda + k, a_bytes);
    _tile_loadd(6, b + k * ldb, b_bytes);
    _tile_loadd(7, b + k * ldb + 32, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, c + 16 * ldc, c_bytes);
  _tile_stored(3, c + 16 * ldc + 16, c_bytes);
}

void Multiply(int64_t rows, int64_t columns, int64_t depth, const Bf16* a,
              int64_t lda, const Bf16* b, int64_t ldb, float* c, int64_t ldc,
              bool add) {
  for (int64_t j = 0; j < columns; j += 32) {
    for (int64_t i = 0; i < rows; i += 32) {
      Block(depth, a + i * lda, lda, b + 2 * j, ldb, c + i * ldc + j, ldc, add);
    }
  }
}

}  // namespace

extern const Bf16Product kBf16AmxProduct;
const Bf16Product kBf16AmxProduct = {"amx", Begin, End, Multiply};

}  // namespace qlora::kernels
