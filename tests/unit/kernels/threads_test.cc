// Ops on real threads give the bits that they give on one.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "tests/unit/kernels/sample_ops.h"

namespace qlora::kernels {
namespace {

constexpr int kThreads = 4;
// Enough for several grains.
constexpr int64_t kRows = 200;
constexpr int64_t kColumns = 512;
constexpr int64_t kSize = kRows * kColumns;

// Grains go to whichever thread is free.
Launch Threaded() {
  Launch launch;
  launch.threads = kThreads;
  launch.parallel_for = [](int64_t n, int64_t grain, const auto& body) {
    std::atomic<int64_t> next = 0;
    const auto work = [&] {
      for (int64_t begin; (begin = next.fetch_add(grain)) < n;) {
        body(begin, std::min(n, begin + grain));
      }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < kThreads; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
  };
  return launch;
}

// What an op reads, or its results.
using Floats = std::vector<float>;

Floats Values(uint64_t seed, int64_t n = kSize) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  Floats values(n);
  for (float& v : values) v = normal(engine);
  return values;
}

View Rows(const Floats& values) {
  return FloatView(values.data(), kRows, kColumns);
}

std::vector<int32_t> Numbers(int32_t below) {
  std::mt19937 engine(7);
  std::vector<int32_t> numbers(kRows);
  for (int32_t& n : numbers) n = static_cast<int32_t>(engine() % below);
  return numbers;
}

class ThreadsTest : public testing::TestWithParam<const Backend*> {
 protected:
  template <typename Op>
  void Run(const Launch& launch, const Op& op) const {
    Launch with_room = launch;
    with_room.workspace_bytes = GetParam()->WorkspaceBytes(op, launch.threads);
    std::vector<double> room(with_room.workspace_bytes / 8 + 16);
    with_room.workspace = reinterpret_cast<void*>(
        (reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
    ASSERT_EQ(GetParam()->Run(with_room, op), Result::kOk);
  }

  // `compute` runs its op and returns all that it wrote.
  void ExpectSame(const std::function<Floats(const Launch&)>& compute) const {
    const Floats want = compute(Launch{});
    for (int i = 0; i < 5; ++i) {
      const Floats got = compute(Threaded());
      ASSERT_EQ(std::memcmp(got.data(), want.data(), 4 * want.size()), 0);
    }
  }
};

// Several grains of rows.
TEST_P(ThreadsTest, EveryOp) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBfloat16}) {
    for (const bool rich : {false, true}) {
      const auto check = [&]<typename Op>(const char* op) {
        SCOPED_TRACE(op);
        const Samples::Kind kind = {.rows = 600, .dtype = dtype, .rich = rich};
        HostSamples want(kind);
        Run(Launch{}, SampleOf<Op>(want));
        for (int i = 0; i < 2; ++i) {
          HostSamples got(kind);
          Run(Threaded(), SampleOf<Op>(got));
          EXPECT_TRUE(got == want);
        }
      };
      ForCommonOps(check);
      ForCpuOps(check);
    }
  }
}

// Sums over rows are cut by columns, of which those samples have few.
TEST_P(ThreadsTest, Norms) {
  const Floats start = Values(1), add = Values(2), dy = Values(3);
  const Floats weight = Values(4, kColumns);
  ExpectSame([&](const Launch& launch) {
    Floats x = start, out(kSize), mean(kRows), rstd(kRows);
    Floats dx(kSize), sums(2 * kColumns);
    Run(launch, LayerNorm{.x = Rows(x),
                          .add = Rows(add),
                          .weight = weight.data(),
                          .eps = 1e-5f,
                          .out = Rows(out),
                          .mean = mean.data(),
                          .rstd = rstd.data()});
    Run(launch, LayerNormBackward{.x = Rows(x),
                                  .weight = weight.data(),
                                  .mean = mean.data(),
                                  .rstd = rstd.data(),
                                  .dy = Rows(dy),
                                  .dx = Rows(dx),
                                  .dweight = sums.data(),
                                  .dbias = sums.data() + kColumns});
    for (const Floats* more : {&out, &mean, &rstd, &dx, &sums}) {
      x.insert(x.end(), more->begin(), more->end());
    }
    return x;
  });
}

TEST_P(ThreadsTest, Embedding) {
  const Floats dx = Values(1);
  const std::vector<int32_t> tokens = Numbers(9);
  ExpectSame([&](const Launch& launch) {
    Floats table(kSize), sums(kColumns);
    Run(launch,
        EmbeddingBackward{
            .tokens = tokens.data(), .dx = Rows(dx), .dtable = Rows(table)});
    Run(launch, ColumnSums{.x = Rows(table), .sums = sums.data()});
    table.insert(table.end(), sums.begin(), sums.end());
    return table;
  });
}

INSTANTIATE_TEST_SUITE_P(Cpu, ThreadsTest,
                         testing::Values(CpuBackends().front(),
                                         CpuBackends().back()));

}  // namespace
}  // namespace qlora::kernels
