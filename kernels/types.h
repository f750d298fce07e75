// What every op of the kernel library is given: matrices in buffers that
// somebody else owns, and where to run.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>

namespace qlora::kernels {

enum class Dtype { kFloat32, kBfloat16, kFloat16 };

// The upper half of a float32.
struct Bf16 {
  uint16_t bits;
};
// IEEE 754 binary16.
struct Fp16 {
  uint16_t bits;
};

inline constexpr int64_t ElementSize(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : 2;
}

// Row-major, `stride` elements from row to row: rows >= 0, columns > 0, stride
// >= columns, at most 2^56 elements; other sizes, zero columns too, are
// kInvalidArgument. Without rows data may be null. Const-ness is the op's
// promise: its comment says what it writes.
//
// Buffers are aligned to their elements; more is never asked, but 16 bytes are
// quicker. What an op writes overlaps nothing else that it is given, unless its
// comment says that two may be the same.
struct View {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;

  template <typename T>
  T* row(int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }
  View Columns(int64_t begin, int64_t count) const {
    return {static_cast<char*>(data) + begin * ElementSize(dtype), dtype, rows,
            count, stride};
  }
  View Rows(int64_t begin, int64_t count) const {
    return {static_cast<char*>(data) + begin * stride * ElementSize(dtype),
            dtype, count, columns, stride};
  }
};

inline View MakeView(void* data, Dtype dtype, int64_t rows, int64_t columns) {
  return {data, dtype, rows, columns, columns};
}

inline View FloatView(const float* data, int64_t rows, int64_t columns) {
  return {const_cast<float*>(data), Dtype::kFloat32, rows, columns, columns};
}

// Refers to a function of a range that lives at least as long as the call it is
// passed to: two words, so that passing one allocates nothing.
class RangeBody {
 public:
  template <std::invocable<int64_t, int64_t> F>
  RangeBody(const F& f)
      : object_(&f), call_([](const void* object, int64_t begin, int64_t end) {
          (*static_cast<const F*>(object))(begin, end);
        }) {}

  void operator()(int64_t begin, int64_t end) const {
    call_(object_, begin, end);
  }

 private:
  const void* object_;
  void (*call_)(const void* object, int64_t begin, int64_t end);
};

// Calls body(begin, end) over disjoint ranges that cover [0, n), possibly on
// several threads, and returns when all are done. Ranges much shorter than
// `grain` do not pay.
using ParallelFor =
    std::function<void(int64_t n, int64_t grain, RangeBody body)>;

// Runs everything on the calling thread.
void SerialFor(int64_t n, int64_t grain, RangeBody body);

// Where an op runs. Results do not depend on it.
struct Launch {
  // Backends of the CPU.
  ParallelFor parallel_for = SerialFor;
  // How many of its bodies may run at the same time, 1 to 65,536; each gets its
  // own part of the workspace.
  int threads = 1;
  // Backends of a device: its stream (cudaStream_t). Ops are queued there and
  // neither allocate nor wait.
  void* stream = nullptr;
  // As many bytes as the op says, aligned to 64; contents do not matter.
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

enum class Result {
  kOk,
  // A null pointer, or a size, stride, type or option that the op's comment
  // rules out. Nothing was written.
  kInvalidArgument,
  // This backend lacks the op, or this type of it. Nothing was written.
  kUnsupported,
  // The device's runtime refused the launch.
  kDeviceError,
};

}  // namespace qlora::kernels
