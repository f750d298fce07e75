#include "bench/gemm_rate.h"

#include <algorithm>
#include <chrono>

#include "ATen/Parallel.h"
#include "ATen/ops/mm.h"
#include "ATen/ops/randn.h"

namespace qlora::bench {

double MeasureGemmRate(ComputeDtype dtype, int threads) {
  constexpr int64_t kSize = 2048;
  at::set_num_threads(threads);
  const auto type =
      dtype == ComputeDtype::kBfloat16 ? at::kBFloat16 : at::kFloat;
  const at::Tensor a = at::randn({kSize, kSize}).to(type);
  const at::Tensor b = at::randn({kSize, kSize}).to(type);
  at::Tensor c = at::mm(a, b);
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    at::mm_out(c, a, b);
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - begin;
    best = std::max(best, 2.0 * kSize * kSize * kSize / seconds.count());
  }
  return best;
}

}  // namespace qlora::bench
