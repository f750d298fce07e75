// Matrices in buffers that somebody else owns.
#pragma once

#include <cstdint>

namespace qlora::trainer {

// What products are computed in. The residual stream, norms, softmax, loss and
// all trainable values are float32 whatever this says.
enum class Dtype { kFloat32, kBfloat16 };

struct Bf16 {
  uint16_t bits;
};

inline int64_t ElementSize(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : 2;
}

// Row-major, `stride` elements from row to row. Const-ness is the function's
// promise: outputs are named so and come last.
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

// Calls f(T{}) with the element type.
template <typename F>
decltype(auto) WithType(Dtype dtype, F&& f) {
  return dtype == Dtype::kFloat32 ? f(float{}) : f(Bf16{});
}

}  // namespace qlora::trainer
