#include "bench/machine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "ATen/Parallel.h"
#include "ATen/ops/mm.h"
#include "ATen/ops/randn.h"
#include "absl/strings/str_cat.h"
#include "bench/huge_pages.h"
#include "worker/trainer/ops/parallel.h"
#include "worker/trainer/parallel/aligned_buffer.h"

namespace qlora::bench {
namespace {

constexpr int64_t kBytes = 256 << 20;
// Of uint64_t.
constexpr int64_t kCount = kBytes / 8;
constexpr int64_t kLine = 8;

typedef uint64_t Pair __attribute__((vector_size(16)));

// Around the caches.
#if defined(__SSE2__)
void Stream(Pair pair, uint64_t* to) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)pair);
}
void FinishStreams() { _mm_sfence(); }
#else
void Stream(Pair pair, uint64_t* to) { std::memcpy(to, &pair, 16); }
void FinishStreams() {}
#endif

Pair Load(const uint64_t* from) {
  Pair pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair;
}

void StreamCopy(const uint64_t* from, int64_t n, uint64_t* to) {
  // A page ahead; what lies past the end does no harm.
  constexpr int64_t kAhead = 512;
  for (int64_t i = 0; i < n; i += kLine) {
    __builtin_prefetch(from + i + kAhead);
    for (int64_t k = i; k < i + kLine; k += 2) Stream(Load(from + k), to + k);
  }
  FinishStreams();
}

// Not of one value: there are memories that store zeros faster.
void StreamValues(uint64_t first, int64_t n, uint64_t* to) {
  Pair pair = {first, ~first};
  for (int64_t i = 0; i < n; i += 2) {
    Stream(pair, to + i);
    pair += first;
  }
  FinishStreams();
}

Pair Mix(const uint64_t* from, int64_t n) {
  Pair lanes[kLine / 2] = {};
  for (int64_t i = 0; i < n; i += kLine) {
    for (int64_t k = 0; k < kLine / 2; ++k) lanes[k] ^= Load(from + i + 2 * k);
  }
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

struct Buffers {
  trainer::AlignedBuffer storage =
      trainer::AlignedBuffer::Create(2 * kBytes, "copies").value();
  uint64_t* from = reinterpret_cast<uint64_t*>(storage.bytes().data());
  uint64_t* to = from + kCount;

  Buffers() {
    std::mt19937_64 random(1);
    for (int64_t i = 0; i < 2 * kCount; ++i) from[i] = random();
  }
};

}  // namespace

double Seconds(const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
      .count();
}

double Limit::Measure() {
  double now = 0;
  for (const auto& way : ways) now = std::max(now, work / Seconds(way));
  best = std::max(best, now);
  return now;
}

Limit GemmLimit(kernels::Dtype dtype, int threads) {
  constexpr int64_t kSize = 2048;
  at::set_num_threads(threads);
  const bool bf16 = dtype == kernels::Dtype::kBfloat16;
  const auto type = bf16 ? at::kBFloat16 : at::kFloat;
  const auto matrix = [&] {
    return InHugePages(at::randn({kSize, kSize}).to(type));
  };
  const at::Tensor a = matrix(), b = matrix();
  return {.name = absl::StrCat("machine/gemm/", bf16 ? "bfloat16" : "float32"),
          .unit = "FLOP/s",
          .work = 2.0 * kSize * kSize * kSize,
          .ways = {[=, c = matrix()]() mutable { at::mm_out(c, a, b); }}};
}

std::vector<Limit> MemoryLimits(int threads) {
  at::set_num_threads(threads);
  const auto buffers = std::make_shared<Buffers>();
  const auto everywhere = [buffers](auto part) {
    return std::function<void()>([buffers, part] {
      trainer::Parallel(kCount / kLine, 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * kLine;
        part(buffers->from + first, (end - begin) * kLine, buffers->to + first);
      });
    });
  };
  using Bytes = const uint64_t*;
  const auto copy = everywhere([](Bytes from, int64_t n, uint64_t* to) {
    std::memcpy(to, from, n * 8);
  });
  const auto write = everywhere([](Bytes from, int64_t n, uint64_t* to) {
    StreamValues(from[0], n, to);
  });
  const auto read = everywhere(
      [](Bytes from, int64_t n, uint64_t* to) { Stream(Mix(from, n), to); });
  const auto limit = [](const char* name, double work,
                        std::vector<std::function<void()>> ways) {
    return Limit{
        .name = name, .unit = "bytes/s", .work = work, .ways = std::move(ways)};
  };
  return {limit("machine/copy", 2.0 * kBytes, {copy, everywhere(StreamCopy)}),
          limit("machine/write", kBytes, {write}),
          limit("machine/read", kBytes, {read})};
}

}  // namespace qlora::bench
