#include "worker/trainer/ops/dropout.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/simd/kernels.h"
#include "worker/trainer/ops/parallel.h"

namespace qlora::trainer {

using kernels::DropoutRow;
using kernels::Simd;

uint64_t MixKeys(uint64_t a, uint64_t b) {
  uint64_t z = a + 0x9e3779b97f4a7c15u * (b + 1);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

void FillRowKeys(uint64_t seed, uint64_t step,
                 std::span<const uint64_t> document_ids,
                 std::span<const int32_t> offsets, std::span<uint64_t> keys) {
  const uint64_t base = MixKeys(MixKeys(0, seed), step);
  for (size_t d = 0; d + 1 < offsets.size(); ++d) {
    const uint64_t document = MixKeys(base, document_ids[d]);
    for (int32_t t = offsets[d]; t < offsets[d + 1]; ++t) {
      keys[t] = MixKeys(document, t - offsets[d]);
    }
  }
}

void ApplyDropout(const View& x, std::span<const uint64_t> row_keys,
                  uint32_t module, float probability, bool add,
                  const View& out) {
  const double threshold = std::ldexp(static_cast<double>(probability), 32);
  WithType(x.dtype, [&](auto t) {
    using T = decltype(t);
    Parallel(x.rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const uint64_t key = MixKeys(row_keys[r], module);
        const DropoutRow row = {
            {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
            static_cast<uint32_t>(std::min(threshold, 4294967295.0)),
            1.0f / (1.0f - probability)};
        Simd<T>().dropout(x.row<T>(r), x.columns, row, add, out.row<T>(r));
      }
    });
  });
}

}  // namespace qlora::trainer
