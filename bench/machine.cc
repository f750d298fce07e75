#include "bench/machine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "ATen/Parallel.h"
#include "ATen/ops/mm.h"
#include "ATen/ops/randn.h"
#include "worker/trainer/ops/parallel.h"

namespace qlora::bench {
namespace {

double Seconds(const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
      .count();
}

}  // namespace

double BestSeconds(const std::function<void()>& run) {
  run();
  double best = Seconds(run);
  double total = best;
  for (int i = 1; i < 5 || total < 0.5; ++i) {
    const double seconds = Seconds(run);
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

double GemmRate(kernels::Dtype dtype, int threads) {
  constexpr int64_t kSize = 2048;
  at::set_num_threads(threads);
  const auto type =
      dtype == kernels::Dtype::kBfloat16 ? at::kBFloat16 : at::kFloat;
  const at::Tensor a = at::randn({kSize, kSize}).to(type);
  const at::Tensor b = at::randn({kSize, kSize}).to(type);
  at::Tensor c = at::mm(a, b);
  return 2.0 * kSize * kSize * kSize /
         BestSeconds([&] { at::mm_out(c, a, b); });
}

double CopyBandwidth(int threads) {
  constexpr int64_t kBytes = 256 << 20;
  at::set_num_threads(threads);
  std::vector<char> from(kBytes, 1), to(kBytes, 2);
  // The C library streams copies of this size.
  const double seconds = BestSeconds([&] {
    trainer::Parallel(kBytes, 32 << 20, [&](int64_t begin, int64_t end) {
      std::memcpy(to.data() + begin, from.data() + begin, end - begin);
    });
  });
  return 2.0 * kBytes / seconds;
}

}  // namespace qlora::bench
