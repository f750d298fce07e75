#include "worker/trainer/ops/dropout.h"

#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/run_op.h"

namespace qlora::trainer {

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
  RunOp(KernelLaunch(), kernels::Dropout{.x = x,
                                         .row_keys = row_keys.data(),
                                         .module = module,
                                         .probability = probability,
                                         .add = add,
                                         .out = out});
}

}  // namespace qlora::trainer
