// That ops of CPUs allocate nothing: operator new is counted in this program.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/unit/kernels/sample_ops.h"

namespace {

std::atomic<int64_t> allocations;

void* Allocate(size_t bytes, size_t alignment) {
  ++allocations;
  void* p = std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
  if (p == nullptr) std::abort();
  return p;
}

}  // namespace

// The other forms of new and delete come here.
void* operator new(size_t bytes) { return Allocate(bytes, 16); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return Allocate(bytes, static_cast<size_t>(alignment));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return Allocate(bytes, 16);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace qlora::kernels {
namespace {

struct alignas(64) Line {
  char bytes[64];
};

// Each piece of work on its own.
void PiecewiseFor(int64_t n, int64_t grain, RangeBody body) {
  for (int64_t begin = 0; begin < n; begin += grain) {
    body(begin, std::min(n, begin + grain));
  }
}

template <typename Op>
void ExpectNoAllocation(const Backend& backend, const Samples::Kind& kind) {
  HostSamples samples(kind);
  const Op op = SampleOf<Op>(samples);
  Launch launch = {.parallel_for = PiecewiseFor, .threads = 2};
  std::vector<Line> room(backend.WorkspaceBytes(op, launch.threads) / 64 + 1);
  launch.workspace = room.data();
  launch.workspace_bytes = std::ssize(room) * 64;
  const int64_t before = allocations;
  const Result result = backend.Run(launch, op);
  const int64_t after = allocations;
  EXPECT_EQ(result, Result::kOk);
  EXPECT_EQ(after - before, 0);
}

TEST(AllocationTest, IsCounted) {
  const int64_t before = allocations;
  void* volatile plain = ::operator new(8);
  void* volatile aligned = ::operator new (64, std::align_val_t{64});
  EXPECT_EQ(allocations - before, 2);
  ::operator delete(plain);
  ::operator delete (aligned, std::align_val_t{64});
}

TEST(AllocationTest, OpsOfCpus_AllocateNothing) {
  for (const Backend* backend : CpuBackends()) {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBfloat16}) {
      for (const bool rich : {false, true}) {
        const auto expect = [&]<typename Op>(const char* op) {
          SCOPED_TRACE(std::string(op) + " on " + std::string(backend->name()));
          ExpectNoAllocation<Op>(*backend, {.dtype = dtype, .rich = rich});
        };
        ForCommonOps(expect);
        ForCpuOps(expect);
      }
    }
  }
}

}  // namespace
}  // namespace qlora::kernels
